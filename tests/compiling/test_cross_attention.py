"""Maps of layers whose queries and keys are of different sequences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asap_exp
from asap_exp.attention import AsapAttention, LayerInputs, SinkhornAttention
from asap_exp.calibration.kl import teacher_target, total_kl
from asap_exp.ops.sliced_map import SlicedMap
from tests.small_model import FEW, compile_small

DIM, HEADS, QUERIES, KEYS = 16, 2, 9, 7


class Reads(nn.Module):
    """One text reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.cross = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.head = nn.Linear(DIM, 3)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, text: Tensor, other: Tensor) -> Tensor:
        return self.head(self.cross(text, other, other)[0].mean(dim=1))


def pairs(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(12, QUERIES, DIM, generator=generator),
            torch.randn(12, KEYS, DIM, generator=generator),
        )
        for _ in range(count)
    ]


def both(model: nn.Module, batch: Any) -> Tensor:
    return model(*batch)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"one_pass": True},
        {"steps": ("ridge", "kl", "learned_slices", "end_to_end"), "end_to_end": FEW},
        {"refine": 1, "sequential": True, "logits": True},
    ],
    ids=["ridge", "one_pass", "every_step", "refine"],
)
def test_maps_of_cross_attention_are_fitted(options: dict[str, Any]) -> None:
    model = asap_exp.convert(Reads().eval(), attention="sinkhorn")
    compiled = compile_small(model, pairs(), forward=both, **{"steps": ("ridge",), **options})
    batch = pairs()[0]
    with torch.no_grad():
        softmax = (both(Reads().eval(), batch) - both(model, batch)).abs().max()
        assert (both(compiled, batch) - both(model, batch)).abs().max() < softmax
    assert asap_exp.drift(compiled, batch, forward=both)["cross"] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize(("n", "m"), [(9, 7), (5, 1), (1, 5), (4, 8)])
def test_kl_of_plans_is_that_of_their_rows(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(3, HEADS, size, 4, generator=generator).double() for size in (n, m))
    inputs = LayerInputs(q, k, k, None)
    teacher = SinkhornAttention(num_iters=6)
    theta = nn.functional.normalize(torch.randn(HEADS, 2, 4, generator=generator), dim=-1)
    attend = AsapAttention.of(SlicedMap(theta, torch.full((HEADS, 2), 0.5)))
    attend = attend.double()
    rows, hats = teacher.plan(q, k), attend.plan(q, k)
    expected = (rows * (rows / hats).log()).sum(dim=(0, 2, 3))
    torch.testing.assert_close(total_kl(attend, teacher_target(inputs, teacher)), expected)
