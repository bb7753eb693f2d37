"""Seeded inputs, every operator behind one signature, and the comparisons the tests share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from asap_exp import ops

assert_close64 = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


@dataclass(frozen=True)
class Inputs:
    """All inputs that an operator may read; N queries, M keys, L slices."""

    q: Tensor  # [B, H, N, D]
    k: Tensor  # [B, H, M, D]
    v: Tensor  # [B, H, M, width]
    row_dual: Tensor  # [B, H, N]
    theta: Tensor  # [H, L, D]
    weight: Tensor  # [H, L]
    query_weight: Tensor  # [H, D + 1]
    adaptive_weight: Tensor  # [H, 5, L]
    logit_weight: Tensor  # [H, 3]
    relaxation: Tensor  # [H]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        return Inputs(*(change(getattr(self, field.name)) for field in fields(self)))

    def map_tokens(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Apply `change` to the inputs with tokens: q, k, v and row_dual."""
        return replace(self, **{name: change(getattr(self, name)) for name in PER_TOKEN})


PER_TOKEN = ("q", "k", "v", "row_dual")


def make_inputs(
    *,
    batch: int = 2,
    heads: int = 3,
    queries: int = 7,
    keys: int | None = None,
    head_dim: int = 4,
    value_dim: int = 5,
    slices: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Make inputs with logits of order 1; self-attention shapes unless `keys` is given."""
    generator = torch.Generator().manual_seed(seed)
    keys = queries if keys is None else keys

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    theta = torch.nn.functional.normalize(normal(heads, slices, head_dim), dim=-1)
    return Inputs(
        q=normal(batch, heads, queries, head_dim),
        k=normal(batch, heads, keys, head_dim),
        v=normal(batch, heads, keys, value_dim),
        row_dual=normal(batch, heads, queries),
        theta=theta,
        weight=normal(heads, slices),
        query_weight=0.1 * normal(heads, head_dim + 1),
        adaptive_weight=0.2 * normal(heads, 5, slices),
        logit_weight=normal(heads, 3),
        relaxation=torch.linspace(0.6, 1.6, heads, dtype=torch.float64).to(dtype),
    )


@dataclass(frozen=True)
class Operator:
    """An operator: `reads` are its inputs in order, `token_dims` the token axes of each result."""

    function: Callable
    reads: tuple[str, ...]
    token_dims: tuple[tuple[int, ...], ...]
    fixed: dict

    def __call__(self, inputs: Inputs, **options) -> tuple[Tensor, ...]:
        arguments = (getattr(inputs, name) for name in self.reads)
        result = self.function(*arguments, **(self.fixed | options))
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def run(
        self, inputs: Inputs, cotangents: tuple[Tensor, ...] | None = None, **options
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return the results, and the gradients of <results, cotangents> for every input read."""
        leaves = inputs.map(lambda x: x.detach().clone().requires_grad_())
        results = self(leaves, **options)
        cotangents = make_cotangents(results) if cotangents is None else cotangents
        sources = [getattr(leaves, name) for name in self.reads]
        gradients = torch.autograd.grad(results, sources, cotangents, materialize_grads=True)
        detached = tuple(result.detach() for result in results)
        return detached, dict(zip(self.reads, gradients, strict=True))


def make_cotangents(results: tuple[Tensor, ...], seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in results
    )


def _operator(function: Callable, reads: str, *token_dims: tuple[int, ...], **fixed) -> Operator:
    return Operator(function, tuple(reads.split()), token_dims, fixed)


def adaptive_asap_attention(q, k, v, theta, weight, query_weight, adaptive_weight, **options):
    """Call `asap_attention` with adaptive features."""
    fit = (theta, weight, query_weight)
    return ops.asap_attention(q, k, v, *fit, adaptive_weight=adaptive_weight, **options)


def adaptive_dual(q, k, theta, weight, query_weight, adaptive_weight, **options):
    """Call `predicted_dual` with adaptive features."""
    fit = (theta, weight, query_weight)
    return ops.predicted_dual(q, k, *fit, adaptive_weight=adaptive_weight, **options)


def relaxed_asap_attention(
    q, k, v, theta, weight, query_weight, adaptive_weight, logit_weight, relaxation, **options
):
    """Call `asap_attention` with every feature and relaxed updates."""
    options |= {"adaptive_weight": adaptive_weight, "logit_weight": logit_weight}
    fit = (theta, weight, query_weight)
    return ops.asap_attention(q, k, v, *fit, relaxation=relaxation, **options)


def relaxed_dual(
    q, k, theta, weight, query_weight, adaptive_weight, logit_weight, relaxation, **options
):
    """Call `predicted_dual` with every feature and relaxed updates."""
    options |= {"adaptive_weight": adaptive_weight, "logit_weight": logit_weight}
    fit = (theta, weight, query_weight)
    return ops.predicted_dual(q, k, *fit, relaxation=relaxation, **options)


def one_pass_map(theta, weight, query_weight, adaptive_weight, logit_weight) -> ops.SlicedMap:
    return ops.SlicedMap(theta, weight, query_weight, adaptive_weight, logit_weight, one_pass=True)


def one_pass_asap_attention(q, k, v, *fit, **options):
    """Call `map_attention` with a map of one pass that has every feature but the coarse dual."""
    return ops.map_attention(q, k, v, one_pass_map(*fit), **options)


def one_pass_dual(q, k, *fit, **options):
    """Call `map_dual` with that map."""
    return ops.map_dual(q, k, one_pass_map(*fit), **options)


EVERY_FEATURE = "theta weight query_weight adaptive_weight logit_weight"
EVERY_WEIGHT = f"{EVERY_FEATURE} relaxation"

OPERATORS = {
    operator.function.__name__: operator
    for operator in (
        _operator(ops.sinkhorn_attention, "q k v", (2,), num_iters=3),
        _operator(ops.relaxed_sinkhorn_attention, "q k v", (2,), num_iters=3, relaxation=1.5),
        _operator(ops.sinkhorn_duals, "q k", (2,), (2,), (2,), num_iters=3),
        _operator(ops.closure_attention, "q k v row_dual", (2,)),
        _operator(ops.softmax_attention, "q k v", (2,)),
        _operator(ops.sliced_potentials, "q k theta", (3,)),
        _operator(ops.asap_attention, "q k v theta weight query_weight", (2,), refine=1),
        _operator(ops.predicted_dual, "q k theta weight query_weight", (2,), refine=1),
        _operator(
            adaptive_asap_attention,
            "q k v theta weight query_weight adaptive_weight",
            (2,),
            refine=1,
        ),
        _operator(adaptive_dual, "q k theta weight query_weight adaptive_weight", (2,), refine=1),
        _operator(relaxed_asap_attention, f"q k v {EVERY_WEIGHT}", (2,), refine=2),
        _operator(relaxed_dual, f"q k {EVERY_WEIGHT}", (2,), refine=2),
        _operator(one_pass_asap_attention, f"q k v {EVERY_FEATURE}", (2,)),
        _operator(one_pass_dual, f"q k {EVERY_FEATURE}", (2,)),
        _operator(ops.adaptive_features, "q k theta", (4,)),
        _operator(ops.logit_features, "q k", (3,)),
        _operator(ops.query_features, "q", (3,)),
        _operator(ops.attention_plan, "q k row_dual", (2, 3)),
    )
}
TEACHER, CLOSURE, SOFTMAX, ASAP = (
    OPERATORS[f"{name}_attention"] for name in ("sinkhorn", "closure", "softmax", "asap")
)
# query_features has no keys and no temperature, so the shared options do not concern it.
QUERY_KEY_OPERATORS = {k: v for k, v in OPERATORS.items() if k != "query_features"}
ATTENTIONS = {k: v for k, v in OPERATORS.items() if k.endswith("_attention")}


def centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


def identity_values(inputs: Inputs) -> Inputs:
    """Return inputs with v = I, for which attention returns its own plan."""
    batch, heads, keys, _ = inputs.k.shape
    eye = torch.eye(keys, dtype=inputs.v.dtype).expand(batch, heads, keys, keys)
    return replace(inputs, v=eye)


def relative_rms(x: Tensor, reference: Tensor) -> float:
    """Return the RMS of the difference over that of the reference, in float64; 0 for 0 over 0."""
    difference = (x.double() - reference.double()).norm().item()
    size = reference.double().norm().item()
    if size == 0:
        return math.inf if difference else 0.0
    return difference / size
