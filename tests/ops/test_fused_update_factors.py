"""The factors of a gradient's sum over updates, as halves, in Triton's interpreter."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from asap_exp import ops
from asap_exp.ops import routes
from tests.ops.inputs import relative_rms

pytest.importorskip("triton")
from asap_exp.ops.backend import INTERPRETED
from asap_exp.ops.kernels.launch import Launch
from asap_exp.ops.kernels.sinkhorn import tiled_gradient, update_factors
from asap_exp.ops.kernels.sinkhorn.update_factors import (
    GROUP,
    GROUP_CHANGE,
    LARGEST_CHANGE,
    RUN,
    Factors,
)
from asap_exp.ops.products import ONE_PASS

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU, and no interpreter"
)

BATCH, HEADS, T = 2, 2, 3
FAR = (0, 1)
"""The head one of whose duals has changed too much for one group."""


def sides(n: int, m: int, size: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make duals f^0 .. f^T and g^0 .. g^T, and weights of that size, df^t and w^t."""
    generator = torch.Generator().manual_seed(0)
    rows, row_weights, cols, col_weights = (
        torch.randn(BATCH, HEADS, steps, tokens, generator=generator)
        for tokens in (n, m)
        for steps in (T + 1, T)
    )
    cols[*FAR, 1, 5] = cols[*FAR, T, 5] + LARGEST_CHANGE
    cols[*FAR, 0, 5] = cols[*FAR, 2, 5] = cols[*FAR, T, 5]
    found = 2 * rows, size * row_weights, 2 * cols - cols[:, :, -1:], 0.3 * size * col_weights
    return tuple(x.to(DEVICE).contiguous() for x in found)  # type: ignore[return-value]


def launch_of(n: int, m: int, padding: Tensor | None = None) -> Launch:
    q, k = (torch.zeros(BATCH, HEADS, count, 16, device=DEVICE) for count in (n, m))
    return Launch.of(q, k, k, padding, T, 0.25, ONE_PASS)


def decoded(weights: Tensor) -> Tensor:
    """Return the factors `[B, H, T, kind, tokens]` that have the place of weights."""
    runs = weights.view(torch.float16).unflatten(3, (-1, 2, RUN))
    return runs.transpose(3, 4).flatten(4).double()


@pytest.mark.parametrize("size", [1.0, 2.0**-70, 2.0**90])
@pytest.mark.parametrize(("n", "m", "padded"), [(32, 400, False), (160, 160, True)])
def test_factors_take_the_place_of_weights(n, m, padded, size):
    padding = None
    if padded:
        lengths = torch.tensor([[n], [n - 37]], device=DEVICE)
        padding = torch.arange(n, device=DEVICE) >= lengths
    tensors = sides(n, m, size)
    rows, row_weights, cols, col_weights = [x.double() for x in tensors]
    found = update_factors.packed_factors(launch_of(n, m, padding), *tensors)

    exists = (
        torch.ones(BATCH, 1, 1, n, device=DEVICE) if padding is None else ~padding[:, None, None]
    )
    exists = exists.double()
    counted = [exists if x.shape[3] == n else 1.0 for x in (rows, cols)]
    changes = [x[:, :, :-1] - x[:, :, -1:] for x in (rows, cols)]
    most_change = largest_of(changes, counted)
    grouped = most_change >= LARGEST_CHANGE
    assert grouped.nonzero().tolist() == [list(FAR)]
    most_weight = largest_of([row_weights, col_weights], counted)
    most_change[grouped] = GROUP_CHANGE
    expected_unit = torch.exp2((LARGEST_CHANGE - most_change - most_weight.log2()).floor())
    assert torch.equal(found.unit.double(), expected_unit)
    assert found.begin[~grouped].eq(0).all()
    assert found.anchor[~grouped].eq(T).all()
    # A dual of a key changes by 15 and back: no two updates are a group.
    assert found.begin[*FAR].tolist() == found.anchor[*FAR].tolist() == [0, 1, 2]

    for kind, sign, duals, weights, counts, halves in (
        (0, -1.0, rows, row_weights, counted[0], tensors[1]),
        (1, 1.0, cols, col_weights, counted[1], tensors[3]),
    ):
        of_anchor = found.anchor.long()[..., None].expand_as(duals[:, :, :-1])
        change = duals[:, :, :-1] - duals.gather(2, of_anchor)
        plain = sign * torch.exp2(change) * counts
        weighted = plain * weights * found.unit.double()[..., None, None]
        factors = decoded(halves)
        for number, expected in ((kind, plain), (1 - kind, weighted)):
            torch.testing.assert_close(
                factors[:, :, :, number], expected, rtol=2**-11 + 1e-5, atol=2**-25
            )
        assert factors.abs().max() <= 2**15
    if padding is not None:
        assert decoded(tensors[1])[1][..., n - 37 :].eq(0).all()


def largest_of(sides: list[Tensor], counted: list[Tensor | float]) -> Tensor:
    """Return the largest number of both sides `[B, H]`, of tokens that count."""
    both = ((x * y).abs().amax(dim=(2, 3)) for x, y in zip(sides, counted, strict=True))
    return torch.maximum(*both)


@pytest.mark.parametrize(
    ("step", "sizes"),
    [
        (0.1, [20]),  # one sum, with the exponentials of the last dual
        (1.0, [4, 8, 8]),  # as many as the matrix units take at once
        (3.0, [4, 8, 8]),
        (4.0, [6, 7, 7]),  # three on either side of the anchor
        (6.5, [5, 5, 5, 5]),
        (13.5, [1] * 20),
    ],
)
def test_groups_of_updates_whose_duals_go_on_moving(step, sizes):
    assert max(sizes[1:], default=0) <= GROUP
    steps = 20
    n = 32
    q = torch.zeros(1, 1, n, 16, device=DEVICE)
    p = Launch.of(q, q, q, None, steps, 0.25, ONE_PASS)
    drift = step * torch.arange(steps + 1.0, device=DEVICE)[:, None]
    # The first query moves up, and the last key down.
    rows, cols = (torch.zeros(1, 1, steps + 1, n, device=DEVICE) for _ in range(2))
    rows[0, 0, :, :1], cols[0, 0, :, -1:] = drift, -drift
    weights = [torch.ones(1, 1, steps, n, device=DEVICE) for _ in range(2)]
    found = update_factors.packed_factors(p, rows, weights[0], cols, weights[1])
    begin, anchor = found.begin[0, 0].tolist(), found.anchor[0, 0].tolist()
    assert [len([*same]) for _, same in itertools.groupby(begin)] == sizes
    if step * steps < LARGEST_CHANGE:
        assert anchor == [steps] * steps
        return
    for t in range(steps):
        assert abs(t - anchor[t]) * step <= GROUP_CHANGE
        assert begin[t] <= min(t, anchor[t])


def grads(
    scales: Tensor, grad_out: Tensor, n: int, m: int, num_iters: int, backend: str, **options
):
    """Return the gradients of q, k and v, of heads whose logits have these standard deviations.

    All inputs are numbers of bfloat16, so that logits are the same in TF32.
    """
    generator = torch.Generator().manual_seed(1)
    size = scales.sqrt()[None, :, None, None]
    inputs = [torch.randn(1, len(scales), x, 16, generator=generator) for x in (n, m, m)]
    leaves = [
        (x * y).bfloat16().float().to(DEVICE)
        for x, y in zip(inputs, (size, size, 1.0), strict=True)
    ]
    if backend == "reference":
        leaves = [x.double() for x in leaves]
    leaves = [x.requires_grad_() for x in leaves]
    with routes.force("tiled"):
        out = ops.sinkhorn_attention(*leaves, num_iters=num_iters, backend=backend, **options)
        return torch.autograd.grad(out, leaves, grad_out.to(out))


def normal(*shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    return x.bfloat16().float().to(DEVICE)


@pytest.fixture
def factors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Factors]]:
    """Allow products in TF32, and note how the factors of every gradient were made."""
    found = []
    packed = tiled_gradient.packed_factors

    def noting(*arguments):
        found.append(packed(*arguments))
        return found[-1]

    monkeypatch.setattr(tiled_gradient, "packed_factors", noting)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield found
    torch.backends.cuda.matmul.fp32_precision = before


SCALES = torch.tensor([1.0, 4.0, 6.0, 14.0, 60.0])
GROUPED = [False, False, False, True, True]
"""Whether updates of the head are summed in groups: the last two heads."""

MOST = 2e-3 if INTERPRETED else 5e-3
MOST_IN_TF32 = 5e-5 if INTERPRETED else 5e-3
"""Largest errors. The interpreter's TF32 is float32: what float16 rounds is seen by itself."""


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "num_iters"), [(96, 96, 20), (48, 112, 7), (80, 80, 2)])
def test_gradient_of_heads_on_every_way(factors, n, m, num_iters):
    grad_out = normal(1, len(SCALES), n, 16)
    arguments = SCALES, grad_out, n, m, num_iters
    expected, found = grads(*arguments, "reference"), grads(*arguments, "triton")
    assert len(factors) == 1
    assert factors[0].anchor[0, :, 0].lt(num_iters).tolist() == GROUPED
    for x, y in zip(found, expected, strict=True):
        for head in range(len(SCALES)):
            assert relative_rms(x[:, head], y[:, head]) <= MOST


@pytest.mark.slow
def test_padded_tokens_are_nothing(factors):
    n, padding = 64, torch.arange(64, device=DEVICE)[None] >= 41
    grad_out = normal(1, 2, n, 16).masked_fill(padding[:, None, :, None], 0.0)
    arguments = torch.tensor([1.0, 60.0]), grad_out, n, n, 4
    expected = grads(*arguments, "reference", key_padding_mask=padding)
    found = grads(*arguments, "triton", key_padding_mask=padding)
    assert factors[0].anchor[0, :, 0].lt(4).tolist() == [False, True]
    for x, y in zip(found, expected, strict=True):
        assert relative_rms(x, y) <= MOST
        assert x[:, :, 41:].eq(0).all()


@pytest.mark.slow
@pytest.mark.parametrize("power", [-60, 60])
def test_gradient_of_any_size_has_the_same_bits(factors, power):
    grad_out = normal(1, 1, 32, 16)
    arguments = 32, 32, 3, "triton"
    once = grads(torch.ones(1), grad_out, *arguments)
    scaled = grads(torch.ones(1), grad_out * 2.0**power, *arguments)
    assert factors[1].unit == factors[0].unit * 2.0**-power
    assert all(torch.equal(x * 2.0**power, y) for x, y in zip(once, scaled, strict=True))


@pytest.mark.slow
def test_gradient_of_nothing_is_nothing_and_one_that_is_not_finite_is_seen(factors):
    grad_out = normal(1, 3, 32, 16)
    arguments = 32, 32, 3, "triton"
    ordinary = grads(torch.ones(3), grad_out, *arguments)
    grad_out[:, 0], grad_out[:, 1, 7, 3] = 0.0, torch.nan
    found = grads(torch.ones(3), grad_out, *arguments)
    for x, y in zip(found, ordinary, strict=True):
        assert x[:, 0].eq(0).all()
        assert torch.equal(x[:, 2], y[:, 2])
    assert not any(x[:, 1].isfinite().any() for x in found[:2])


@pytest.mark.slow
def test_lengths_that_are_no_multiple_of_a_run_keep_their_weights(factors):
    arguments = torch.ones(1), normal(1, 1, 40, 16), 40, 40, 3
    expected, found = grads(*arguments, "reference"), grads(*arguments, "triton")
    assert not factors
    for x, y in zip(found, expected, strict=True):
        assert relative_rms(x, y) <= MOST_IN_TF32


@pytest.mark.parametrize("rank", range(1, 65))
def test_blocks_cover_the_rank_with_the_least_waste(rank):
    choices = [(x, y) for x, y in itertools.product((16, 32), (0, 16, 32)) if x + y >= rank]
    assert sum(tiled_gradient.rank_blocks(rank)) == min(map(sum, choices))
    assert tiled_gradient.rank_blocks(rank) in choices
