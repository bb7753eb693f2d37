"""LOTFormer's attention: doubly-stochastic of rank r, in time and memory linear in the tokens.

A measure of r pivots z_p with masses rho_p, both learned per head, stands between queries and keys.
With S_ip = q_i . z_p / (eps sqrt(D)) and S'_pj = z_p . k_j / (eps sqrt(D)), two entropic transport
plans are solved, one from the queries to the pivots and one from the pivots to the keys,

    Gamma  >= 0 of S:   rows sum to 1/n, columns to rho,
    Gamma' >= 0 of S':  rows sum to rho, columns to 1/m,

and glued at the pivots, A = n Gamma diag(1/rho) Gamma'. Each plan is found by `num_iters` updates
of its duals, Gamma's a at the pivots and Gamma's f at the queries:

    a_p = log rho_p - LSE_i(S_ip + f_i),      f_i = -log n - LSE_p(S_ip + a_p),
    b_j = -log m - LSE_p(S'_pj + g_p),        g_p = log rho_p - LSE_j(S'_pj + b_j),

with f = g = 0 at the start. Since f and g come last,

    A = softmax_p(S_ip + a_p) softmax_j(S'_pj + b_j),

whose rows sum to 1 exactly and whose columns to n/m as closely as the updates have converged. A v
is computed from the right: no n x m matrix exists but in `plan`.

Source: LOTFormer, arXiv 2509.23436, and its code, anonymous13761234/LOTFormer at 465cde5. Defaults
are those of its image models (imagenet_swin, deit-imagenet): 32 pivots that start with norms of
about 1, eps = 1, and 5 half-steps that begin with one of f, in whose place are 3 updates. That f
and g always come last, and the exact padding, are this project's: some of its models of texts
divide by the row sums instead, leave the mass of padded queries, and penalise padded keys with a
constant.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from asap_exp.attention.base import register
from asap_exp.attention.learned import LearnedAttention
from asap_exp.ops.backend import full_precision
from asap_exp.ops.checks import (
    check_count,
    check_mask,
    check_positive,
    check_query_key,
    check_switch,
    check_temperature,
    check_value,
)
from asap_exp.ops.masking import absent, blank, compute_dtype, effective_padding


class Factors(NamedTuple):
    """Factors of the plan A: rows of both sum to 1, and no padded token has mass."""

    queries: Tensor
    """`[B, H, N, r]`, n Gamma: how the mass of a query is spread over the pivots."""
    keys: Tensor
    """`[B, H, r, M]`, diag(1/rho) Gamma': how the mass of a pivot is spread over the keys."""


@register("lotformer")
class LotformerAttention(LearnedAttention):
    """Attention through `pivots` learned points, by two transport plans of `num_iters` updates.

    `learned_masses` also learns the masses of the pivots, as a softmax; otherwise all are equal.
    `pivot_std` is the standard deviation of the pivots at the start; None for head_dim ** -0.5, so
    that their norms are about 1. Gradients go through every update.
    """

    parameter_names = ("pivot", "log_mass")

    def __init__(
        self,
        *,
        pivots: int = 32,
        num_iters: int = 3,
        eps: float = 1.0,
        learned_masses: bool = True,
        pivot_std: float | None = None,
    ) -> None:
        check_count("pivots", pivots, 1)
        check_count("num_iters", num_iters, 1)
        check_temperature(eps, None, 1)
        check_switch("learned_masses", learned_masses)
        if pivot_std is not None:
            check_positive("pivot_std", pivot_std)
        super().__init__()
        self.pivots, self.num_iters = pivots, num_iters
        self.eps, self.learned_masses, self.pivot_std = eps, learned_masses, pivot_std

    def start(self, heads: int, head_dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        # What is linear in S or in S' alone cancels in A, whose sums are fixed: pivots near 0 are
        # near a saddle point, where A is uniform and nothing that it depends on has a gradient.
        std = head_dim**-0.5 if self.pivot_std is None else self.pivot_std
        pivot = std * normal(heads, self.pivots, head_dim)
        if not self.learned_masses:
            return {"pivot": pivot}
        return {"pivot": pivot, "log_mass": torch.zeros_like(pivot[..., 0])}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        check_query_key(q, k)
        check_value(v, k)
        with full_precision(q):
            queries, keys = self.factors(q, k, key_padding_mask=key_padding_mask)
            values = blank(v, key_padding_mask, 2).to(queries.dtype)
            out = queries @ (keys @ values)
            return blank(out, key_padding_mask, 2).to(v.dtype)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        check_query_key(q, k)
        with full_precision(q):
            queries, keys = self.factors(q, k, key_padding_mask=key_padding_mask)
            return blank(blank(queries @ keys, key_padding_mask, 2), key_padding_mask, 3)

    def factors(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Factors:
        """Return the two factors of the plan, of which `plan` is the product."""
        check_mask(key_padding_mask, q, k)
        padding = effective_padding(key_padding_mask)
        dtype = compute_dtype(q)
        z, log_mass = self._pivots(q, dtype)
        scale = q.shape[3] ** -0.5 / self.eps
        x, y = (blank(t, key_padding_mask, 2).to(dtype) * scale for t in (q, k))
        to_pivots, to_keys = x @ z.transpose(-1, -2), z @ y.transpose(-1, -2)
        a = self._pivot_dual(to_pivots, log_mass, padding)
        b = self._key_dual(to_keys, log_mass, padding)
        return Factors(
            (to_pivots + a[..., None, :]).softmax(dim=-1),
            (to_keys + absent(b, padding)[..., None, :]).softmax(dim=-1),
        )

    def _pivots(self, q: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the pivots `[H, r, D]` and the logarithms of their masses `[H, r]`."""
        learned = self.learned(q, dtype)
        if self.learned_masses:
            return learned["pivot"], learned["log_mass"].log_softmax(dim=-1)
        pivot = learned["pivot"]
        return pivot, pivot.new_full(pivot.shape[:2], -math.log(self.pivots))

    def _pivot_dual(self, S: Tensor, log_mass: Tensor, padding: Tensor | None) -> Tensor:
        """Return a `[B, H, r]` from the logits `[B, H, N, r]` of queries; f comes last in A."""
        f = torch.zeros_like(S[..., 0])
        a = log_mass - (S + absent(f, padding)[..., None]).logsumexp(dim=-2)
        for _ in range(self.num_iters - 1):
            f = -(S + a[..., None, :]).logsumexp(dim=-1)  # without log n, which changes no plan
            a = log_mass - (S + absent(f, padding)[..., None]).logsumexp(dim=-2)
        return a

    def _key_dual(self, S: Tensor, log_mass: Tensor, padding: Tensor | None) -> Tensor:
        """Return b `[B, H, M]` from the logits `[B, H, r, M]` of keys; g comes last in A."""
        b = -S.logsumexp(dim=-2)  # without log m, as above
        for _ in range(self.num_iters - 1):
            g = log_mass - (S + absent(b, padding)[..., None, :]).logsumexp(dim=-1)
            b = -(S + g[..., None]).logsumexp(dim=-2)
        return b

    def extra_repr(self) -> str:
        masses = "learned" if self.learned_masses else "equal"
        return f"pivots={self.pivots}, num_iters={self.num_iters}, eps={self.eps}, masses={masses}"
