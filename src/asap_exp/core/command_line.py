"""The command of this process, and the one that runs a job of a sweep alone."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "asap-exp"

NEVER = "resume=never"
"""Word with which a training begins anew."""

AFTER_AN_END = {
    "train": "it continues from its last checkpoint, if it has one",
    "distill": "finished maps are kept, and this one is fitted from the start",
    "evaluate": "parts that are measured are kept, and the others are measured",
    "benchmark": "rows that are measured are kept, and the others are measured",
}
"""What a stage that was stopped does when it is started again."""

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


def start_again(stage: str = "", words: Sequence[str] = (), saved: str = "") -> str:
    """Return what to do once a stage was stopped, and what that keeps.

    Without a `stage` it is that of this process, with its words. `saved` is the checkpoint that it
    wrote, if it did.
    """
    if not stage and _job is not None:
        stage, words = _job[1].rpartition(".")[2], _job[2:]
    if stage == "train" and NEVER in words:
        again = f"start it again without {NEVER}"
    else:
        again = "start the same command again"
    if saved:
        return f"a checkpoint is saved ({saved}): {again}, and it continues from there"
    kept = AFTER_AN_END.get(stage)
    return f"{again}{f': {kept}' if kept else ''}"


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
