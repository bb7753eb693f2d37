"""Layers fitted together as one: the same maps as one by one."""

import pytest
import torch

from asap_exp.attention import AsapAttention
from asap_exp.calibration import stacking
from asap_exp.calibration.gradient import values
from asap_exp.calibration.kl import Target, mean_kl
from asap_exp.calibration.plan_fit import fit_plans
from asap_exp.calibration.stacking import (
    by_layer,
    num_logits,
    stack_maps,
    stack_targets,
    stacks,
    unstack_into,
)
from asap_exp.calibration.steps import AdamFit, LayerData
from tests.calibration.inputs import HEADS, TOKENS, inputs, small_map, targets, unit_scale


def layers(*, padded: bool) -> tuple[list[AsapAttention], list[list[Target]]]:
    """Two maps, and two batches of each layer's targets under one mask."""
    data = [[inputs(4, 10 * layer + batch, padded=padded) for batch in (0, 1)] for layer in (1, 2)]
    data[1] = [b._replace(key_padding_mask=a.key_padding_mask) for a, b in zip(*data, strict=True)]
    return [small_map(seed=seed) for seed in (0, 1)], [targets(*each) for each in data]


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_joined_fit_is_that_of_each_layer_alone(padded: bool) -> None:
    config = AdamFit(updates=15, lr=0.03)
    alone, found = layers(padded=padded)
    for attend, each in zip(alone, found, strict=True):
        fit_plans(attend, unit_scale(), LayerData(each, each, seed=3), config, slices=True)
    attends, _ = layers(padded=padded)
    whole, together = stack_maps(attends), stack_targets(found)
    fit_plans(
        whole, unit_scale().repeat(2, 1), LayerData(together, together, seed=3), config, slices=True
    )
    unstack_into(whole, attends)
    for one, other in zip(alone, attends, strict=True):
        for name, value in values(one).items():
            torch.testing.assert_close(values(other)[name], value, rtol=1e-3, atol=1e-4)
    kl = by_layer(attends, {"kl": mean_kl(whole, together)})
    for attend, each, part in zip(attends, found, kl, strict=True):
        torch.testing.assert_close(part["kl"], mean_kl(attend, each), rtol=1e-5, atol=1e-7)


def runs(maps: dict[str, AsapAttention], found: dict[str, list[Target]]) -> list[list[str]]:
    return list(stacks(maps, found))


def test_layers_that_are_not_alike_are_fitted_apart() -> None:
    common = targets(inputs(4, 0))
    maps = {name: small_map() for name in "abcdef"}
    found = dict.fromkeys(maps, common)
    assert runs(maps, found) == [list("abcdef")]
    maps["c"].eps = 0.5
    assert runs(maps, found) == [["a", "b"], ["c"], ["d", "e", "f"]]
    found["e"] = targets(inputs(4, 0, padded=True))
    assert runs(maps, found) == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    assert runs({}, {}) == []


def test_a_stack_is_bounded_by_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict.fromkeys("abcde", targets(inputs(4, 0), inputs(3, 0)))
    maps = {name: small_map() for name in found}
    assert num_logits(found["a"]) == 4 * HEADS * TOKENS**2
    monkeypatch.setattr(stacking, "MOST_LOGITS", 2 * num_logits(found["a"]))
    assert runs(maps, found) == [["a", "b"], ["c", "d"], ["e"]]
    monkeypatch.setattr(stacking, "MOST_LOGITS", 1)
    assert runs(maps, found) == [["a"], ["b"], ["c"], ["d"], ["e"]]
