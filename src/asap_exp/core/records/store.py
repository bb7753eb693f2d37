"""Records as JSON files: written whole, checked when they are read, a damaged one left out."""

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
    """One kind of record: the type it is read as, the `command` that makes it, its formats.

    Records of `format` are sealed. Those of the format before are older than seals; one of them
    that carries a seal must still match it. `manifests` finds, in the JSON, the manifest of each
    stage that must have finished.
    """

    type: type[R]
    what: str
    command: str
    format: int
    manifests: Callable[[dict[str, Any]], Mapping[str, Any]]

    def from_json(self, value: Any, file: Path) -> R:
        """UserError where it is no record, was changed, or lacks a manifest of a finished stage."""
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
        """Seals and writes a record; UserError, and nothing written, if it could not be read."""
        value = sealed(to_json(content))
        made(self.type, value, file)
        record = self.from_json(value, file)
        write_json(file, value)
        return record

    def read(self, file: Path) -> R:
        return self.from_json(read_json(file), file)

    def load(self, folder: Path, *, strict: bool = False) -> list[R]:
        """The records of a folder by name; a damaged one is left out or, if `strict`, refused."""
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
    """Copies records into `folder`, under the names that `read` gives with their JSON.

    A damaged one is left out with a warning or, if `strict`, refused.
    """
    found = readable(sources, read, strict=strict)
    # Written only after all were read: a copy that fails is no damage of its record.
    for name, value in found:
        write_json(folder / name, value)
    return [folder / name for name, _ in found]


def readable(files: Iterable[Path], read: Callable[[Path], T], *, strict: bool) -> list[T]:
    """What `read` returns for each file; one that it refuses is named on stderr and left out.

    If `strict`, its UserError is raised instead.
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
