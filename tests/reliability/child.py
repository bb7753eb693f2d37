"""Stages as forked processes: what they import is there already, so that one takes a second."""

import atexit
import contextlib
import ctypes
import fcntl
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

MEMORY = 6 << 30
"""Address space that a child may add to what it inherits, in bytes."""
PR_SET_PDEATHSIG = 1
PIPE_SIZE = 1 << 20


def preload() -> None:
    """Imports what the stages import, and computes nothing, which may start threads."""
    import torch

    import asap_exp.benchmark.benchmark
    import asap_exp.data.text
    import asap_exp.distill.budget
    import asap_exp.distill.distill
    import asap_exp.evaluate.evaluate
    import asap_exp.report.benchmarks
    import asap_exp.report.report
    import asap_exp.train.trainer  # noqa: F401

    torch.set_num_threads(1)


def die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(frozen=True)
class Ended:
    """How a stage ended; `status` is the one that a shell shows: 128 + signal where killed."""

    status: int
    out: str
    err: str
    seconds: float
    pid: int
    timed_out: bool = False

    @property
    def text(self) -> str:
        return f"{self.out}\n{self.err}"

    @property
    def last_words(self) -> str:
        lines = [line for line in self.err.splitlines() if line.strip()]
        return f"status {self.status}: {' / '.join(lines[-2:])[:300]}"


class Stage:
    """A running `python -m asap_exp.STAGE OVERRIDES` in `folder`, a session of its own."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        overrides: tuple[str, ...],
        environment: dict[str, str],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """`prepare` is called in the child before the stage begins, for example to set limits."""
        parent = os.getpid()
        ready, begun = os.pipe()
        # Not files, which a limit or a full disk would stop too.
        self.pipes = [os.pipe() for _ in ("out", "err")]
        self.said = [b"", b""]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                die_with_parent(parent)
                os.setsid()
                os.close(ready)
                os.chdir(folder)
                redirect(*(writing for _, writing in self.pipes))
                limit_memory()
                os.environ.update(environment)
                prepare()
                os.write(begun, b"x")
                os.close(begun)
                run_as_main(f"asap_exp.{stage}", overrides)
            finally:
                os._exit(70)
        for reading, writing in self.pipes:
            os.close(writing)
            os.set_blocking(reading, False)
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.close(begun)
        os.read(ready, 1)
        os.close(ready)
        self.started = time.monotonic()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)  # until it is waited for, its id is nobody else's

    def over(self) -> bool:
        """Whether it has ended; it can still be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def listen(self) -> None:
        for index, (reading, _) in enumerate(self.pipes):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(reading, PIPE_SIZE):
                    self.said[index] += data

    def wait(self, timeout: float) -> Ended:
        """Kills it where it takes longer, and what it started in any case."""
        deadline = self.started + timeout
        while not self.over() and time.monotonic() < deadline:
            self.listen()
            time.sleep(0.005)
        timed_out = not self.over()
        seconds = time.monotonic() - self.started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.listen()
        for reading, _ in self.pipes:
            os.close(reading)
        out, err = (data.decode(errors="replace") for data in self.said)
        return Ended(code if code >= 0 else 128 - code, out, err, seconds, self.pid, timed_out)


def redirect(out: int, err: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)


def limit_memory() -> None:
    """An absurd size must fail here as on a full machine, and leave the machine alone."""
    inherited = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (inherited + MEMORY, inherited + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_as_main(module: str, overrides: tuple[str, ...]) -> NoReturn:
    """Ends as an interpreter that was started with `-m module` would."""
    atexit._clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = [module, *overrides]
    status, interrupted = 0, False
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)
