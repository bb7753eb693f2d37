"""Rows of a benchmark that has no record yet: each is written as soon as it is measured.

A benchmark that was stopped therefore continues when it is started again: rows of the same code,
versions, hardware and settings are taken over, all others are measured again.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from asap_exp.core.console import say, warn
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import postponed
from asap_exp.core.locks import held
from asap_exp.core.manifest import Attempt, BenchmarkManifest, attempts_at, manifest, now
from asap_exp.core.runs import flatten
from asap_exp.core.sealed import write_sealed
from asap_exp.core.typed import STRICT, read, shortened, to_json


@contextmanager
def continued(folder: Path, **facts: Any) -> Iterator[dict[str, Any]]:
    """Hold the folder of a benchmark and write its manifest, with the attempts before this one."""
    path = folder / "manifest.json"
    with held(folder):
        before = attempts_at(path, BenchmarkManifest)
        with manifest(path, earlier_attempts=before, **facts) as record:
            yield record


@dataclass(config=STRICT, kw_only=True)
class KeptRow:
    """A row, the attempt that measured it, and all else that its numbers depend on."""

    format: Literal[1]
    attempt: Attempt
    settings: dict[str, Any]
    ceilings: dict[str, Any]
    row: dict[str, Any]
    sha256: str


ATTEMPT = ("status", "started", "code", "versions", "hardware")
"""Fields of an attempt that has not ended."""

DEPENDS_ON = ("code", "versions", "hardware", "settings", "ceilings")


class Rows:
    """Rows of the benchmark in `folder` by their keys: those kept there, and those added since."""

    def __init__(
        self,
        folder: Path,
        record: dict[str, Any],
        settings: Mapping[str, dict[str, Any]],
        words: str = "{}",
    ) -> None:
        """Take over what fits, and say so, with `words` for a list of keys.

        `settings` are, by key, what a row depends on besides code, versions and hardware, which
        `record`, the manifest of this attempt, has. Its earlier attempts become those whose rows
        are taken over.
        """
        self.folder, self.words = folder / "rows", words
        self.attempt = {key: record[key] for key in ATTEMPT}
        self.settings: dict[str, dict[str, Any]] = to_json(settings)
        kept = self._kept()
        self.ceilings = next((each.ceilings for each in kept.values()), None)
        """Rates of the device that the rows are compared with; None if none is kept."""
        self.rows = {key: each.row for key, each in kept.items()}
        ended = {each["started"]: each for each in record["earlier_attempts"]}
        mine = {each.attempt.started: to_json(each.attempt) for each in kept.values()}
        record["earlier_attempts"] = [ended.get(key, mine[key]) for key in sorted(mine)]

    @property
    def missing(self) -> list[str]:
        """Keys of the rows that are still to be measured."""
        return [key for key in self.settings if key not in self.rows]

    def add(self, key: str, ceilings: dict[str, Any], row: dict[str, Any]) -> None:
        """Keep a row that was measured now; a signal waits until it is written."""
        self.rows[key] = to_json(row | {"measured": now()})
        facts = {"attempt": self.attempt, "settings": self.settings[key], "ceilings": ceilings}
        with postponed(quiet=True) as stop:
            write_sealed(self._file(key), to_json({"format": 1, **facts, "row": self.rows[key]}))
        stop.obey()

    def all(self) -> list[dict[str, Any]]:
        """Return every row, in order."""
        return [self.rows[key] for key in self.settings]

    def remove(self) -> None:
        """Remove the files: the record holds the rows now."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _kept(self) -> dict[str, KeptRow]:
        """Return the rows that fit; say which these are, and why others are measured again."""
        kept: dict[str, KeptRow] = {}
        again: dict[str, list[str]] = {}
        for key in self.settings:
            if not self._file(key).exists():
                continue
            try:
                found = read(KeptRow, self._file(key))
            except UserError as error:
                warn(f"{error}; {self._named([key])} is measured again")
                continue
            # All rows of a record are compared with the same ceilings.
            ceilings = next(iter(kept.values()), found).ceilings
            facts = {**self.attempt, "settings": self.settings[key], "ceilings": ceilings}
            if (why := difference({**vars(found), **vars(found.attempt)}, facts)) is None:
                kept[key] = found
            else:
                again.setdefault(why, []).append(key)
        if kept:
            say(f"{self._named(kept)}: measured before the run was stopped, kept")
        for why, keys in again.items():
            say(f"{self._named(keys)}: measured again, since {why}")
        return kept

    def _named(self, keys: Iterable[str]) -> str:
        return self.words.format(", ".join(keys))


def difference(then: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Return why a row measured `then` is another one `here`, in words; None if it is the same."""
    before, after = (
        flatten({key: to_json(facts[key]) for key in DEPENDS_ON}) for facts in (then, here)
    )
    for facts, verb in ((before, "had"), (after, "has")):
        if facts["code.commit"] is None:
            return "the commit of the code is not known"
        if facts["code.dirty"]:
            return f"the code {verb} changes that no commit holds"
    for key in dict.fromkeys((*before, *after)):
        was, is_now = before.get(key), after.get(key)
        if was != is_now:
            return f"{key} was {shortened(str(was))} and is {shortened(str(is_now))}"
    return None
