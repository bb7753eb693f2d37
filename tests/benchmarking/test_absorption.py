"""The share of heads that absorb their scalings, against the kernel's rule on scalings."""

import inspect

import pytest
import torch
from torch import Tensor

from asap_exp.benchmarking.absorption import (
    ABSORBED_BEYOND,
    CHECKED_EVERY,
    absorbed_by_short,
    absorbed_by_whole_head,
)
from asap_exp.benchmarking.benchmark import absorbed_share
from asap_exp.benchmarking.inputs import Inputs
from asap_exp.ops import backend

NUM_ITERS = 20


def queries_and_keys(size: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(4, 3, 24, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return (size * q).to(dtype), (size * k).to(dtype)


def absorbs(S: Tensor) -> bool:
    """The updates of one head on scalings, step by step as `ops.triton.short` makes them."""
    g = -S.logsumexp(dim=0)
    f = -(S + g).amax(dim=1)
    E = (S + g + f[:, None]).exp()
    a, b = 1 / E.sum(dim=1), torch.ones_like(g)
    found = False
    for t in range(1, NUM_ITERS):
        if t % 4 == 1 and max(x.log2().abs().max() for x in (a, b)) > 24:
            found = True
            f, g = f + a.log(), g + b.log()
            E, a, b = (S + g + f[:, None]).exp(), torch.ones_like(a), torch.ones_like(b)
        b = 1 / (E * a[:, None]).sum(dim=0)
        a = 1 / (E * b).sum(dim=1)
    return found


def test_some_heads_absorb_and_others_do_not() -> None:
    assert 0 < absorbed_by_short(*queries_and_keys(4.5), NUM_ITERS).double().mean() < 1


def makes_its_plan_anew(S: Tensor) -> bool:
    """The updates of one head on scalings, step by step as `ops.triton.whole_head` makes them."""
    g = -S.logsumexp(dim=0)
    f = -(S + g).amax(dim=1)
    t, made = 1, 0
    while t < NUM_ITERS:
        E, made = (S + g + f[:, None]).exp(), made + 1
        a, b = torch.ones_like(f), torch.ones_like(g)
        steps = min(NUM_ITERS - t, 4)
        while steps > 0:
            for _ in range(steps):
                before = b
                a = 1 / (E * b).sum(dim=1)
                b = 1 / (E * a[:, None]).sum(dim=0)
            t += steps
            left = NUM_ITERS - t
            step = (b.log2() - before.log2()).abs().max()
            steps = left if b.log2().abs().max() + step * left <= 24 else 0
        f, g = f + a.log(), g + b.log()
    return made > 1


@pytest.mark.parametrize(
    ("replayed", "rule", "easy"),
    [(absorbed_by_short, absorbs, 3.0), (absorbed_by_whole_head, makes_its_plan_anew, 1.0)],
    ids=["short", "whole head"],
)
@pytest.mark.parametrize("size", [1.0, 3.0, 4.5, 6.0, 20.0])
def test_heads_are_those_of_the_rule_on_scalings(replayed, rule, easy, size: float) -> None:
    q, k = queries_and_keys(size)
    S = q @ k.transpose(-1, -2) * 8**-0.5
    expected = torch.tensor([[rule(head) for head in sample] for sample in S])
    assert torch.equal(replayed(q, k, NUM_ITERS), expected)
    assert expected.any() == (size > easy)


def test_long_rows_and_the_reference_are_in_the_log_domain_throughout() -> None:
    q, k = queries_and_keys(20.0, torch.bfloat16)
    assert absorbed_share(Inputs(q, k, k), "reference") is None
    long = torch.cat([k] * 11, dim=2)  # 264 tokens
    assert absorbed_share(Inputs(long, long, long), "triton") is None


@pytest.mark.skipif(backend.fused is None, reason="Triton is not installed")
def test_rule_is_the_kernels() -> None:
    from asap_exp.ops.kernels.sinkhorn import logits_in_registers

    q, k = queries_and_keys(20.0, torch.bfloat16)
    assert absorbed_share(Inputs(q, k, k), "triton") > 0.5
    source = inspect.getsource(logits_in_registers.plan.fn)
    assert f"> {ABSORBED_BEYOND}:" in source
    assert f"if t % {CHECKED_EVERY} == 1:" in source


@pytest.mark.skipif(backend.fused is None, reason="Triton is not installed")
def test_rule_is_the_other_kernels() -> None:
    from asap_exp.ops.kernels.sinkhorn import plan_in_shared_memory

    q, k = queries_and_keys(6.0, torch.bfloat16)
    q, k = (torch.cat([x] * 6, dim=2) for x in (q, k))  # 144 tokens
    assert absorbed_share(Inputs(q, k, k), "triton") > 0.5
    assert plan_in_shared_memory.FARTHEST.value == ABSORBED_BEYOND
    assert plan_in_shared_memory.CAUTIOUS.value == CHECKED_EVERY
