"""What the end of a stage amounts to."""

import re
from typing import Any

from tests.reliability.bench import Trial
from tests.reliability.child import Ended
from tests.reliability.facts import difference

TRACEBACK = "Traceback (most recent call last)"
OTHERWISE_SIGNALLED = 128


def broken(ended: Ended) -> Trial | None:
    """A trial that failed whatever was asked for: a traceback, a crash, no end, no word."""
    if TRACEBACK in ended.text:
        return Trial("traceback", ended.last_words)
    if ended.timed_out:
        return Trial("no end", f"killed after {ended.seconds:.0f} s; {ended.out[-100:]!r}")
    if ended.status >= OTHERWISE_SIGNALLED:
        return Trial("crash", ended.last_words)
    if ended.status not in (0, 2):
        return Trial("odd status", ended.last_words)
    if ended.status == 2 and not sentence(ended):
        return Trial("no sentence", ended.last_words)
    return None


def sentence(ended: Ended) -> str:
    """From `error:` at the beginning of a line to the end; empty without one."""
    found = re.search(r"^error: .*", ended.err, flags=re.MULTILINE | re.DOTALL)
    return found.group() if found else ""


def judged(ended: Ended, now: dict[str, Any], undisturbed: dict[str, Any], *names: str) -> Trial:
    """Of a stage that met with a file that is not what it was; a sentence has one of `names`."""
    if failed := broken(ended):
        return failed
    if ended.status == 2:
        named = any(name in ended.text for name in names)
        return Trial("sentence") if named else Trial("unnamed", ended.last_words)
    differs = difference(now, undisturbed)
    if not differs:
        return Trial("same result")
    warnings = [line for line in ended.text.splitlines() if "warning" in line.lower()]
    if any(name in line for line in warnings for name in names):
        return Trial("left out with a warning")
    already = "Already" in ended.out
    return Trial("already, though damaged" if already else "other result accepted", differs)
