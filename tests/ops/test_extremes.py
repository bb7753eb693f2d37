"""Logits of several hundred, as in trained layers, and logits that are all equal."""

from dataclasses import replace

import ot
import pytest
import torch

from asap_exp.ops import attention_plan, sinkhorn_duals
from tests.ops import plain
from tests.ops.inputs import (
    ATTENTIONS,
    OPERATORS,
    QUERY_KEY_OPERATORS,
    identity_values,
    make_inputs,
    relative_rms,
)

every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
every_attention = pytest.mark.parametrize("operator", ATTENTIONS.values(), ids=ATTENTIONS)


def extreme_inputs(dtype=torch.float64, largest=500.0):
    """Make inputs whose default-scaled logits, and with them row duals, reach +-`largest`."""
    inputs = make_inputs(queries=24, head_dim=8)
    S = plain.logits(inputs.q, inputs.k, eps=1.0, scale=8**-0.5)
    S_max = S.abs().amax(dim=(-1, -2))[..., None]
    row_dual = inputs.row_dual / inputs.row_dual.abs().amax(dim=-1, keepdim=True) * largest
    q = inputs.q * (largest / S_max)[..., None]
    # Weights of order one: potentials of this scale already give duals of several hundred.
    return replace(inputs, q=q, row_dual=row_dual).map(lambda x: x.to(dtype))


def test_large_logits_in_float64_are_those_of_pot():
    inputs = extreme_inputs()
    S = plain.logits(inputs.q, inputs.k, eps=1.0, scale=8**-0.5)
    assert S.abs().amax().item() == pytest.approx(500)
    ready = sinkhorn_duals(inputs.q, inputs.k, num_iters=20).ready
    A = attention_plan(inputs.q, inputs.k, ready)
    marginal = torch.full((24,), 1 / 24, dtype=torch.float64).numpy()
    for b in range(2):
        for h in range(3):
            plan = ot.sinkhorn(
                marginal,
                marginal,
                -S[b, h].numpy(),
                1.0,
                method="sinkhorn_log",
                numItermax=20,
                stopThr=0,
                warn=False,
            )
            torch.testing.assert_close(A[b, h], 24 * torch.from_numpy(plan), rtol=1e-9, atol=1e-11)


@every_operator
def test_large_logits_in_float32_are_finite_and_right(operator):
    inputs = extreme_inputs(torch.float32)
    results, gradients = operator.run(inputs)
    expected = operator(inputs.map(torch.Tensor.double))
    for gradient in gradients.values():
        assert gradient.isfinite().all()
    for result, reference in zip(results, expected, strict=True):
        # A logit of 500 in float32 is exact to 3e-5, and so is the logarithm of a plan's entry.
        assert relative_rms(result, reference) < 2e-4


@every_attention
def test_rows_sum_to_one_at_large_logits(operator):
    A = operator(identity_values(extreme_inputs(torch.float32)))[0]
    torch.testing.assert_close(A.sum(-1), torch.ones_like(A[..., 0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 3.0, -500.0, 500.0])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (4, 7)])
def test_constant_logits_give_the_uniform_plan(queries, keys, constant):
    inputs = make_inputs(queries=queries, keys=keys, dtype=torch.float32)
    # <q, k> = constant for all pairs, with tokens that carry it on one channel.
    q, k = torch.zeros_like(inputs.q), torch.zeros_like(inputs.k)
    q[..., 1], k[..., 1] = constant, 1.0
    inputs = identity_values(replace(inputs, q=q, k=k))
    duals = sinkhorn_duals(q, k, num_iters=4, scale=1.0)
    zeros = torch.zeros_like(duals.row)
    # -log m - constant takes the logit away and leaves 1/m.
    log_m = torch.tensor(float(keys)).log().item()
    col = torch.full_like(duals.col, -constant - log_m)
    rounding = {"rtol": 0, "atol": 1e-6 + 5e-7 * abs(constant)}
    torch.testing.assert_close(duals.ready, zeros, **rounding)
    torch.testing.assert_close(duals.row, zeros, **rounding)
    torch.testing.assert_close(duals.col, col, **rounding)
    for name in ("sinkhorn_attention", "asap_attention"):
        A = OPERATORS[name](inputs, scale=1.0)[0]
        torch.testing.assert_close(A, torch.full_like(A, 1 / keys), rtol=1e-5, atol=0)
    phi = OPERATORS["sliced_potentials"](inputs, scale=1.0)[0]
    torch.testing.assert_close(phi, torch.zeros_like(phi))


def test_scale_zero_is_uniform_attention():
    inputs = identity_values(make_inputs())
    A = OPERATORS["sinkhorn_attention"](inputs, scale=0.0)[0]
    torch.testing.assert_close(A, torch.full_like(A, 1 / 7))
    assert not OPERATORS["sliced_potentials"](inputs, scale=0.0)[0].any()


@pytest.mark.parametrize("eps", [1e-3, 1e3])
@pytest.mark.parametrize("operator", QUERY_KEY_OPERATORS.values(), ids=QUERY_KEY_OPERATORS)
def test_very_cold_and_very_hot_temperatures_stay_finite(operator, eps):
    results, gradients = operator.run(make_inputs(dtype=torch.float32), eps=eps)
    for x in (*results, *gradients.values()):
        assert x.isfinite().all()
