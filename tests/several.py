"""Ranks of one training as forked processes: what they import is there already."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

FORK = multiprocessing.get_context("fork")


@dataclass
class Ended:
    """What one rank returned or raised, and what it printed."""

    result: Any
    error: str
    printed: str


def in_ranks(work: Callable[[], Any], count: int = 2, seconds: float = 240) -> list[Ended | None]:
    """Run `work` in each of `count` processes; None for one that was killed or takes too long.

    A busy machine takes ten times as long as an idle one.
    """
    if torch.cuda.is_initialized():
        pytest.skip("a forked process cannot use the GPU that its parent has used")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        receiving, sending = FORK.Pipe(duplex=False)
        process = FORK.Process(target=one_rank, args=(work, rank, port, sending))
        process.start()
        sending.close()
        started.append((process, receiving))
    found: list[Ended | None] = []
    until = time.monotonic() + seconds
    for _, receiving in started:
        try:
            left = max(until - time.monotonic(), 0)
            found.append(receiving.recv() if receiving.poll(left) else None)
        except EOFError:
            found.append(None)
    for process, _ in started:
        process.join(10)
        if process.is_alive():
            process.kill()
    return found


def agreed(work: Callable[[], Any]) -> Any:
    """Run `work` in two processes, and return what both of them return; rank 0 speaks for both."""
    ended = in_ranks(work)
    for one in ended:
        assert one is not None
        assert not one.error, one.printed
    first, second = (one.result for one in ended if one)
    assert first == second
    assert ended[1] is not None
    assert ended[1].printed == ""
    return first


def one_rank(work: Callable[[], Any], rank: int, port: int, sending: Connection) -> None:
    """Run `work` as one rank and send how it ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    printed, result, error = StringIO(), None, ""
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            result = work()
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            if not isinstance(raised, SystemExit | ValueError):
                traceback.print_exc()
    sending.send(Ended(result, error, printed.getvalue()))
    sending.close()
    sys.stdout.flush()
    os._exit(0)
