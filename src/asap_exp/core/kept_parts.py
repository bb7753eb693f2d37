"""Parts of a record that is not finished: each is written as soon as it is measured.

Work that was stopped therefore continues when it is started again: parts of the same code,
versions, hardware and settings are taken over, all others are measured again.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from asap_exp.core.console import say, warn
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import postponed
from asap_exp.core.manifest import Attempt
from asap_exp.core.runs import flatten
from asap_exp.core.sealed import write_sealed
from asap_exp.core.typed import STRICT, read, shortened, to_json


@dataclass(config=STRICT, kw_only=True)
class KeptPart:
    """A part, the attempt that measured it, and all else that its numbers depend on."""

    format: Literal[1]
    attempt: Attempt
    settings: dict[str, Any]
    shared: dict[str, Any]
    content: dict[str, Any]
    sha256: str


ATTEMPT = ("status", "started", "code", "versions", "hardware")
"""Fields of an attempt that has not ended."""

DEPENDS_ON = ("code", "versions", "hardware", "settings", "shared")


class Parts:
    """Parts of the record in `folder` by their keys: those kept there, and those added since."""

    def __init__(
        self,
        folder: Path,
        record: dict[str, Any],
        settings: Mapping[str, dict[str, Any]],
        words: str = "{}",
    ) -> None:
        """Take over what fits, and say so, with `words` for a list of keys.

        `settings` are, by key, what a part depends on besides code, versions and hardware, which
        `record`, the manifest of this attempt, has. Its earlier attempts become those whose parts
        are taken over.
        """
        self.folder, self.words = folder / "parts", words
        self.attempt = {key: record[key] for key in ATTEMPT}
        self.settings: dict[str, dict[str, Any]] = to_json(settings)
        kept = self._kept()
        self.shared = next((each.shared for each in kept.values()), None)
        """What all parts have in common, such as the device's rates; None if no part is kept."""
        self.contents = {key: each.content for key, each in kept.items()}
        ended = {each["started"]: each for each in record["earlier_attempts"]}
        mine = {each.attempt.started: to_json(each.attempt) for each in kept.values()}
        record["earlier_attempts"] = [ended.get(key, mine[key]) for key in sorted(mine)]

    @property
    def missing(self) -> list[str]:
        """Keys of the parts that are still to be measured."""
        return [key for key in self.settings if key not in self.contents]

    def add(self, key: str, content: dict[str, Any], shared: dict[str, Any] | None = None) -> None:
        """Keep a part that was measured now; a signal waits until it is written."""
        self.contents[key] = to_json(content)
        facts = {"attempt": self.attempt, "settings": self.settings[key], "shared": shared or {}}
        with postponed(quiet=True) as stop:
            whole = {"format": 1, **facts, "content": self.contents[key]}
            write_sealed(self._file(key), to_json(whole))
        stop.obey()

    def all(self) -> list[dict[str, Any]]:
        """Return every part, in order."""
        return [self.contents[key] for key in self.settings]

    def remove(self) -> None:
        """Remove the files: the record holds the parts now."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _kept(self) -> dict[str, KeptPart]:
        """Return the parts that fit; say which these are, and why others are measured again."""
        kept: dict[str, KeptPart] = {}
        again: dict[str, list[str]] = {}
        for key in self.settings:
            if not self._file(key).exists():
                continue
            try:
                found = read(KeptPart, self._file(key))
            except UserError as error:
                warn(f"{error}; {self._named([key])} is measured again")
                continue
            # What the first has in common with the others is that of them all.
            shared = next(iter(kept.values()), found).shared
            facts = {**self.attempt, "settings": self.settings[key], "shared": shared}
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
    """Return why a part measured `then` is another one `here`, in words; None if it is the same."""
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
