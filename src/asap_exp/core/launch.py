"""Processes of the other ranks of a stage that this one starts by its own command."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from asap_exp.core.command_line import again, start_again
from asap_exp.core.console import fail
from asap_exp.core.errors import UserError
from asap_exp.core.ranks import PARENT

GRACE = 30.0
"""Seconds after the end of a rank in which the others must notice; then they are ended."""

ENDS = 30.0
"""Seconds in which a rank whose work is done must end."""


class Children:
    """Other ranks of this machine, each the same command with its own environment variables."""

    def __init__(self) -> None:
        self.started: dict[int, subprocess.Popen] = {}
        self.working = False

    def start(self, environments: Mapping[int, Mapping[str, str]]) -> None:
        """Start a process for each rank, with these variables besides those of this process.

        Raises UserError if this process was not started by a command that can be repeated.
        """
        command = again()
        if environments and command is None:
            raise UserError(
                "several devices need a command that each of their processes can run: use that of "
                "a stage, such as `asap-exp train`, or start this program with torchrun "
                "--nproc-per-node=DEVICES"
            )
        self.working = True
        for rank, variables in environments.items():
            given = {**os.environ, PARENT: str(os.getpid()), **variables}
            self.started[rank] = subprocess.Popen([sys.executable, *command], env=given)  # type: ignore[misc]
        if self.started:
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def lost(self, wait: float = 0.0) -> str | None:
        """Return a sentence about a process that has failed, or None; `wait` for one in seconds."""
        until = time.monotonic() + (wait if self.started else 0.0)
        while True:
            for rank, child in self.started.items():
                if child.poll():
                    return sentence(rank, child)
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)

    def end(self, patience: float = ENDS) -> None:
        """Wait for all processes, and kill those that have not ended after `patience` seconds."""
        self.working = False
        until = time.monotonic() + patience
        for child in self.started.values():
            try:
                child.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.started.clear()

    def _watch(self) -> None:
        """End this process if a rank is lost and it does not notice, waiting for its GPU."""
        while self.working and self.lost() is None:
            time.sleep(1)
        until = time.monotonic() + GRACE
        while self.working and time.monotonic() < until:
            time.sleep(1)
        if self.working:
            fail(self.lost() or "a rank was lost")
            for child in self.started.values():
                child.kill()
            os.kill(os.getpid(), signal.SIGKILL)


def sentence(rank: int, child: subprocess.Popen) -> str:
    """Describe how the process of a rank failed."""
    code = child.returncode
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}, perhaps for lack of memory"
    elif code > 128:
        how = f"was stopped by {signal.Signals(code - 128).name}"
    else:
        how = f"failed with status {code}, for the reason above"
    return f"rank {rank} (process {child.pid}) {how}; {start_again()}"


def end_with_parent() -> None:
    """Have this process end soon after the one that started it, however that ends."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
