"""The command of this process, and the one that runs a job of a sweep alone."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "asap-exp"

_job: list[str] | None = None


@contextmanager
def typed(stage: str, words: Sequence[str], job: Sequence[str] | None = None) -> Iterator[None]:
    """Set the command of this process while a stage runs; Hydra gets it in another form.

    `job` are the words that run this job alone, where the command is that of a sweep.
    """
    global _job
    before = _job
    _job = ["-m", f"asap_exp.{stage}", *(words if job is None else job)]
    try:
        yield
    finally:
        _job = before


def again() -> list[str] | None:
    """Return the arguments with which Python runs this job in another process.

    None if it was not begun by the command of a stage.
    """
    return _job


def command() -> str:
    """Return the command as typed: a module or a script, without its folder, and its arguments.

    A stage is named as a module, however it was started. In a sweep it is the command of this job:
    that of the sweep would make all of it again.
    """
    if _job is not None:
        return shlex.join(["python", *_job])
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = None if spec is None else spec.name.removesuffix(".__main__")
    program = Path(sys.argv[0]).name if module is None else f"-m {module}"
    return shlex.join(["python", *program.split(), *sys.argv[1:]])
