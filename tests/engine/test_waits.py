"""The share of waiting, with a clock and a GPU that the test moves."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asap_exp.engine import waits
from asap_exp.engine.waits import Waits


class Gpu:
    """Stands for the CUDA events of a GPU that has done all it was given, or has not."""

    done = True

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.done


def share(
    monkeypatch: pytest.MonkeyPatch, device: str, waited: list[tuple[float, bool]]
) -> dict[str, float]:
    """Return what is logged of an epoch: each step takes a second, after as long a wait as given.

    The flag says whether the GPU has done all it was given when the wait ends.
    """
    clock = [0.0]
    monkeypatch.setattr(waits, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(torch.cuda, "Event", Gpu)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=SimpleNamespace(type=device))
    )
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(log=logged.__setitem__)
    callback = Waits()
    callback.on_train_epoch_start()
    for seconds, done in waited:
        clock[0] += seconds
        monkeypatch.setattr(Gpu, "done", done)
        callback.on_train_batch_start()
        clock[0] += 1
        callback.on_train_batch_end(trainer)
    callback.on_train_epoch_end(trainer, module)
    return logged


def test_on_a_cpu_every_wait_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(monkeypatch, "cpu", [(1, True), (0, False), (3, False)]) == {"wait/data": 4 / 7}


def test_on_a_gpu_a_wait_counts_in_which_it_ran_dry(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = [(1.0, False), (2.0, True), (3.0, False)]
    assert share(monkeypatch, "cuda", waited) == {"wait/data": 3 / 9}


def test_epoch_without_a_step_logs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share(monkeypatch, "cpu", []) == {}
