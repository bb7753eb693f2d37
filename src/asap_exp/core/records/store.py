"""Records as JSON files: written atomically and validated when read; damaged ones are skipped."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.sealed import SEAL, sealed
from asap_exp.core.typed import check_format, from_json, made, to_json

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class RecordKind(Generic[R]):
    """Kind of record: the type it is read as, the `command` that makes it, its formats.

    Records of `format` are sealed. The previous format is older than seals, but a record that
    carries a seal must still match it. `manifests` extracts, from the JSON, the manifest of each
    stage that must have finished.
    """

    type: type[R]
    what: str
    command: str
    format: int
    manifests: Callable[[dict[str, Any]], Mapping[str, Any]]

    def from_json(self, value: Any, file: Path) -> R:
        """Parse a record; UserError if it is invalid or changed, or lacks a stage's manifest."""
        check_format(value, self.format, file, self.what)
        version = value.get("format")
        if isinstance(version, bool) or version not in (self.format - 1, self.format):
            raise UserError(f"{file} is no {self.what} of this version (format {self.format})")
        if version == self.format and SEAL not in value:
            raise UserError(
                f"{file} is damaged: {SEAL} is missing. Make it again with: {self.command}"
            )
        self._check_finished(value, file)
        return from_json(self.type, value, file, self.command)

    def _check_finished(self, value: dict[str, Any], file: Path) -> None:
        missing = [
            stage
            for stage, found in self.manifests(value).items()
            if not isinstance(found, dict) or found.get("status") != "finished"
        ]
        if missing:
            raise UserError(
                f"{file} has no manifest of {', '.join(missing)} that says finished: a number "
                "without one is not reported"
            )

    def write(self, file: Path, content: Mapping[str, Any]) -> R:
        """Seal and write a record; if it would be invalid, raise UserError and write nothing."""
        value = sealed(to_json(content))
        made(self.type, value, file)
        record = self.from_json(value, file)
        write_json(file, value)
        return record

    def read(self, file: Path) -> R:
        return self.from_json(read_json(file), file)

    def load(self, folder: Path, *, strict: bool = False) -> list[R]:
        """Return the records of a folder by name; skip a damaged one or, if `strict`, refuse it."""
        return readable(record_files(folder), self.read, strict=strict)


def record_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def gathered(
    sources: Iterable[Path],
    read: Callable[[Path], tuple[str, Any]],
    folder: Path,
    *,
    strict: bool = False,
) -> list[Path]:
    """Copy records into `folder`, under the names that `read` returns with their JSON.

    A damaged one is left out with a warning or, if `strict`, refused.
    """
    found = readable(sources, read, strict=strict)
    # Write only after all were read, so that a failed copy is not reported as a damaged record.
    for name, value in found:
        write_json(folder / name, value)
    return [folder / name for name, _ in found]


def gathered_by_name(kind: RecordKind[Any], sources: Iterable[Path], folder: Path) -> list[Path]:
    """Copy records, which name themselves, into `folder`; leave damaged ones out with a warning."""

    def named(source: Path) -> tuple[str, Any]:
        value = read_json(source)
        return f"{kind.from_json(value, source).name}.json", value

    return gathered(sources, named, folder)


def readable(files: Iterable[Path], read: Callable[[Path], T], *, strict: bool) -> list[T]:
    """Return what `read` returns for each file; name a refused file on stderr and leave it out.

    If `strict`, the UserError of `read` is raised instead.
    """
    found = []
    for file in files:
        try:
            found.append(read(file))
        except UserError as error:
            if strict:
                raise
            warn(f"left out: {error}")
    return found
