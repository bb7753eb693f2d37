"""Recorded steps by themselves, on a weight that a loop updates too."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asap_exp.core.cuda_graph import WARM_UPS, Recorder, recorded
from asap_exp.engine.step_graphs import StepGraphs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
record: Any = recorded if DEVICE == "cuda" else lambda call, pool: call


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, 6, 3, generator=generator).to(DEVICE)
    return [(x, x.sum(dim=1)) for x in drawn]


class Problem:
    """Least squares of one weight, in graphs or step by step."""

    def __init__(self, **options: Any) -> None:
        self.weight = nn.Parameter(torch.ones(3, device=DEVICE))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9, **options)

    def gradients(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        loss = ((x @ self.weight - 2 * y) ** 2).mean()
        loss.backward()
        return loss.detach()

    def graphs(self) -> StepGraphs:
        return StepGraphs(
            self.optimizer,
            self.gradients,
            lambda: None,
            lambda batch, step: ValueError(f"step {step}: {batch[0].isfinite().all()}"),
            Recorder(record=record),
            first_step=100,
        )


@pytest.mark.parametrize("fused", [True, False])
def test_changed_option_of_the_optimiser_is_recorded_anew(fused: bool) -> None:
    inside, outside = Problem(fused=fused), Problem(fused=fused)
    graphs = inside.graphs()
    for number, batch in enumerate(batches(3 * WARM_UPS + 4)):
        for problem in (inside, outside):
            problem.optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
            problem.optimizer.param_groups[0]["weight_decay"] = 0.1 * (number > WARM_UPS + 1)
        loss = graphs.step(batch)
        outside.optimizer.zero_grad()
        torch.testing.assert_close(loss, outside.gradients(batch))
        outside.optimizer.step()
    torch.testing.assert_close(inside.weight, outside.weight)
    assert graphs.count == 1, "the graph of the earlier option is gone"
    assert graphs.recorder.count == 2


@pytest.mark.parametrize("fused", [True, False])
def test_batch_that_fails_is_named_and_changes_nothing(fused: bool) -> None:
    problem = Problem(fused=fused)
    graphs = problem.graphs()
    good = batches(WARM_UPS + 3)
    for batch in good[:-1]:
        graphs.step(batch)
    before = problem.weight.detach().clone()
    bad = (good[-1][0] / 0, good[-1][1])
    words = rf"step {100 + len(good) - 1}: False"
    if fused:
        graphs.step(bad)
        graphs.step(good[-1])
        with pytest.raises(ValueError, match=words):
            graphs.raise_if_failed()
    else:
        with pytest.raises(ValueError, match=words):
            graphs.step(bad)
    assert torch.equal(problem.weight, before)
