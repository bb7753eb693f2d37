"""Recorded updates are the ordinary ones."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asap_exp.calibration.updates import CosineAdam
from asap_exp.core.cuda_graph import Recorder, recorded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Pair(NamedTuple):
    x: Tensor
    y: Tensor | None
    power: int


def items() -> list[Pair]:
    """Return items of two shapes, and one whose plain value differs."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(DEVICE)

    return [Pair(draw(2 + number % 2, 3), None, 2 + (number == 9)) for number in range(20)]


def fitted(recorder: Recorder | None, given: list[Any]) -> Tensor:
    weight = nn.Parameter(torch.ones(3, device=DEVICE))
    adam = CosineAdam(
        lambda item: ((item.x @ weight).abs() ** item.power).mean(),
        [weight],
        lr=0.1,
        updates=len(given),
        recorder=recorder,
    )
    for item in given:
        adam.update(item)
    assert adam.adam.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    return weight.detach()


def test_recorded_updates_are_the_ordinary_ones() -> None:
    calls = []

    def record(call: Any, pool: Any) -> Any:
        replay = recorded(call, pool) if DEVICE == "cuda" else call
        calls.append(replay)
        return replay

    given = items()
    expected = fitted(Recorder(record=failing), given)
    torch.testing.assert_close(fitted(Recorder(record=record), given), expected)
    assert len(calls) == 2, "one graph for each shape that came often enough"
    assert (expected - 1).abs().max() > 0.1


def failing(call: Any, pool: Any) -> Any:
    raise RuntimeError("not here")


def test_item_of_other_things_than_tensors_is_not_recorded() -> None:
    class Item(NamedTuple):
        x: Tensor
        power: np.ndarray

    recorder = Recorder(record=failing)
    weight = nn.Parameter(torch.ones(2))
    adam = CosineAdam(
        lambda item: (item.x * weight).sum() * float(item.power),
        [weight],
        0.1,
        9,
        recorder=recorder,
    )
    for _ in range(9):
        adam.update(Item(torch.ones(2), np.ones(())))
    assert recorder.works, "it was not asked"
    assert (weight < 0.7).all()
