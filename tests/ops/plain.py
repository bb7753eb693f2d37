"""A second, independent derivation of the same mathematics, for small well-scaled problems.

Sinkhorn works on scaling vectors instead of log-domain duals; potentials follow the definition of a
quantile in exact fractions, one token at a time.
"""

from fractions import Fraction

import torch
from torch import Tensor


def logits(q: Tensor, k: Tensor, eps: float, scale: float) -> Tensor:
    return torch.einsum("bhnd,bhmd->bhnm", q, k) * scale / eps


def sinkhorn_plan(S: Tensor, num_iters: int, row_dual: Tensor | None = None) -> Tensor:
    """Return A after `num_iters` rounds of scaling columns, then rows, from exp(row_dual)."""
    n, m = S.shape[-2:]
    K = S.exp()
    a = S.new_ones(S.shape[:-1]) if row_dual is None else row_dual.exp()
    for _ in range(num_iters):
        b = (n / m) / (K * a[..., :, None]).sum(dim=-2)
        a = 1 / (K * b[..., None, :]).sum(dim=-1)
    return a[..., :, None] * K * b[..., None, :]


def potentials(q: Tensor, k: Tensor, theta: Tensor, eps: float, scale: float) -> Tensor:
    """Return phi [B, H, L, N], computed slice by slice."""
    x = torch.einsum("bhnd,hld->bhln", q, theta)
    y = torch.einsum("bhmd,hld->bhlm", k, theta)
    phi = torch.zeros_like(x)
    for b, h, slice_ in torch.cartesian_prod(*(torch.arange(size) for size in x.shape[:3])):
        phi[b, h, slice_] = torch.tensor(
            _potential(x[b, h, slice_].tolist(), y[b, h, slice_].tolist(), scale / eps),
            dtype=x.dtype,
        )
    return phi


def _potential(x: list[float], y: list[float], factor: float) -> list[float]:
    n, m = len(x), len(y)
    y = sorted(y)
    order = sorted(range(n), key=x.__getitem__)
    phi = [0.0] * n
    for i in range(1, n):
        level = Fraction(i, n)
        left = next(y[j] for j in range(m) if Fraction(j + 1, m) >= level)
        right = next(y[j] for j in range(m) if Fraction(j + 1, m) > level)
        before, here = order[i - 1], order[i]
        phi[here] = phi[before] - factor * (left + right) / 2 * (x[here] - x[before])
    mean = sum(phi) / n
    return [value - mean for value in phi]


def adaptive_features(q: Tensor, k: Tensor, theta: Tensor, eps: float, scale: float) -> Tensor:
    """Return the features [B, H, 5, L, N] minus their mean over the tokens, slice by slice."""
    phi = potentials(q, k, theta, eps, scale)
    features = q.new_zeros(len(q), len(theta), 5, theta.shape[1], q.shape[2])
    for b, h, s in torch.cartesian_prod(*(torch.arange(size) for size in phi.shape[:3])):
        x, y = q[b, h] @ theta[h, s], k[b, h] @ theta[h, s] * scale / eps
        spreads = [z.std(correction=0) for z in (x, y)]
        features[b, h, 0, s] = phi[b, h, s] / (spreads[0] * spreads[1])
        ends = [(y / spreads[1], k[b, h]), (x / spreads[0], q[b, h])]
        for number, (z, tokens) in enumerate(ends):
            for offset, weight in enumerate((z.exp(), (-z).exp())):
                end = (weight[:, None] * tokens).sum(dim=0) / weight.sum()
                features[b, h, 1 + 2 * number + offset, s] = q[b, h] @ end
    return features - features.mean(dim=-1, keepdim=True)


def logit_features(q: Tensor, k: Tensor, eps: float, scale: float) -> Tensor:
    """Return the features [B, H, 3, N] minus their mean over the queries, from z-scores per key."""
    S = logits(q, k, eps, scale)
    scores = (S - S.mean(dim=2, keepdim=True)) / S.std(dim=2, keepdim=True, correction=0)
    of_rows = (scores.mean(dim=3), scores.std(dim=3, correction=0), scores.amax(dim=3))
    features = torch.stack(of_rows, dim=2)
    return features - features.mean(dim=-1, keepdim=True)


def query_features(q: Tensor) -> Tensor:
    """Return [q_i ; |q_i|^2] minus its mean over the tokens, [B, H, D + 1, N]."""
    squared_norm = torch.einsum("bhnd,bhnd->bhn", q, q)
    features = torch.stack([*q.unbind(dim=-1), squared_norm], dim=2)
    return features - features.mean(dim=-1, keepdim=True)
