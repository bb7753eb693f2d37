"""Failures of the machine, such as too little memory or a missing folder, as one sentence."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from asap_exp.core.console import fail
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted, interruptible

NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "unable to allocate",
    "alloc_failed",
)
"""Phrases of PyTorch, NumPy and Python about exhausted memory."""
NO_SLURM = 'Could not detect "srun"'
"""What submitit says on a machine without SLURM."""
NO_KERNEL = "backend='triton' cannot run"
"""How an operator says that the kernels, which `attention.backend` forces, take no such call."""
TOO_LARGE = (
    "storage size calculation overflowed",
    "integer multiplication overflow",
    "without overflow",
    "overflow when unpacking",
    "too large to convert",
    "too big to convert",
    "array is too big",
    "maximum allowed dimension exceeded",
    "maximum supported dimension",
    "invalid buffer size",
    "cannot fit 'int' into an index-sized integer",
    "negative dimension",
)
"""Phrases of PyTorch, NumPy and Python about a number that overflows its type."""

SMALLER = {
    "train": "recipe.batch_size, data.batch_tokens, data.image_size, data.max_length, "
    "model.dim, model.depth or model.mlp_ratio",
    "distill": "calibration.batch_size, calibration.samples, calibration.memory_mib, "
    "calibration.slices or calibration.candidates",
    "evaluate": "batch_size, latency.batch_size, fidelity_samples or max_test_rows",
    "benchmark": "tokens, n, heads or head_dim below gpu and cpu",
    "report": "the number of runs, with run=RUN or task=TASK",
}
"""Settings that can be made smaller, per stage."""

STAGES_KEEP = (
    "finished trainings and maps are kept, and a training that was stopped continues from its last "
    "checkpoint"
)
"""What a script that runs several stages need not do again."""

ADVICE = {
    errno.ENOENT: "it was deleted or moved while the stage ran, or never existed; give the "
    "folder that holds it now, and start the command again",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) and start again",
    errno.ENFILE: "too many files are open on this machine; close some programs and start again",
    errno.ENOSPC: "free some space and start the command again",
    errno.EDQUOT: "free some space or raise the quota, and start the command again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) and start again",
    errno.EACCES: "change its permissions, or give another folder",
    errno.EPERM: "change its permissions, or give another folder",
    errno.EROFS: "give a writable folder",
    errno.EIO: "the disk or its connection fails; check it, or give a folder on another disk",
    errno.ESTALE: "the network file system has lost it; start the command again",
    errno.ENOTDIR: "there is a file in place of a folder; move it, or give another folder",
    errno.EISDIR: "there is a folder in place of a file; move it, or give another path",
    errno.ENAMETOOLONG: "its name is too long; give a shorter one",
    errno.ELOOP: "its symbolic links form a loop; give the folder itself",
    errno.EPIPE: "the reader of the output has exited; write to a file instead",
}
"""Advice per error code of the system."""


def explained(error: BaseException, stage: str = "") -> UserError | None:
    """Return `error` as a UserError if the machine caused it, or None for a bug in the code."""
    for cause in chain(error):
        if isinstance(cause, UserError):
            return cause
        if ran_out_of_memory(cause):
            return UserError(
                f"there was not enough memory ({words(cause)}). Reduce {smaller(stage)}"
            )
        if overflowed(cause):
            return UserError(
                f"a value is too large for this machine ({words(cause)}). Reduce {smaller(stage)}"
            )
        if isinstance(cause, OSError) and cause.errno is not None:
            return unavailable(cause)
        if isinstance(cause, RuntimeError) and str(cause).startswith(NO_KERNEL):
            return UserError(f"attention.{cause}")
        if isinstance(cause, RuntimeError) and NO_SLURM in str(cause):
            return UserError(
                "this is no machine of a SLURM cluster: there is no srun. Start the sweep on a "
                "login node, or choose hydra/launcher=joblib"
            )
    return None


@contextmanager
def sentences(kept: str = "") -> Iterator[None]:
    """End a script with the sentence that explains what went wrong, if there is one.

    `kept` says what the same command need not do again after a signal.

    It ends with the status of a stage: 2 after such a sentence, 128 + signal after a signal.
    """
    try:
        with interruptible():
            yield
    except Interrupted as stop:
        fail(f"{stop}; start the same command again{kept and f': {kept}'}")
        sys.exit(stop.exit_status)
    except Exception as error:
        if (sentence := explained(error)) is None:
            raise
        fail(str(sentence))
        sys.exit(2)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the errors it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def ran_out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out."""
    torch = sys.modules.get("torch")  # where it is not loaded, the error cannot be one of its own
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and said(error, NO_MEMORY)


def overflowed(error: BaseException) -> bool:
    """Return True if a size or number overflowed its type."""
    if isinstance(error, OverflowError):
        return True
    return isinstance(error, (RuntimeError, ValueError, TypeError)) and said(error, TOO_LARGE)


def said(error: BaseException, parts: tuple[str, ...]) -> bool:
    """Return True if the message of `error` contains one of `parts`."""
    text = str(error).lower()
    return any(part in text for part in parts)


def unavailable(error: OSError) -> UserError:
    """Return the UserError for a system error: which file, what happened, what to do."""
    path = error.filename if error.filename is not None else "a file"
    path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else f"file {path}"
    reason = error.strerror or str(error)
    advice = ADVICE.get(error.errno or 0, "check the disk or the network, and start again")
    return UserError(f"{path}: {reason}; {advice}")


def status_of(error: BaseException) -> int:
    """Return the exit status after an error: 2 if a sentence explains it, else 1."""
    return 1 if explained(error) is None else 2


def smaller(stage: str) -> str:
    """Return the settings of a stage that reduce its memory."""
    return SMALLER.get(stage, "the batches, the model or the data")


def words(error: BaseException) -> str:
    """Return how much memory was requested, else the error's first line, else its type."""
    if asked := re.search(r"tried to allocate (\d+) bytes", str(error)):
        return f"{int(asked[1]) / 1e9:,.1f} GB were requested at once"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
