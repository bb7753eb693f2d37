"""Features of a query from its row of logits, after standardising each key's column.

Standardise every column of S over the valid queries, Z_ij = (S_ij - mean_i S_ij) / std_i S_ij (0
where a column is constant up to rounding). The three features, over the valid keys, are

    mean_j Z_ij,   std_j Z_ij,   max_j Z_ij.

A Sinkhorn update from 0 removes from every logit what its column has in common, then looks at the
rows. These features do the same without exponentials, for logits of any size. (They are this
project's.)
"""

import torch
from torch import Tensor

from asap_exp.ops.masking import blank, centre, effective_padding
from asap_exp.ops.reference._enlarging import enlargement
from asap_exp.ops.reference.sinkhorn import logits

COUNT = 3

CONSTANT = 1e-5
"""Relative deviation up to which a column counts as constant: it may be mere rounding."""


def logit_features(
    q: Tensor, k: Tensor, *, eps: float, scale: float, key_padding_mask: Tensor | None
) -> Tensor:
    """Compute the features `[B, H, 3, N]`, centred over the valid tokens; 0 at padded positions."""
    S = logits(q, k, eps=eps, scale=scale, mask=key_padding_mask)
    return of_logits(S, key_padding_mask)


def of_logits(S: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Compute the features from logits `[B, H, N, M]`."""
    padding = effective_padding(key_padding_mask)
    # `standardised` works on rows; in the transpose of S, a row holds the logits of one key.
    Z = standardised(S.transpose(-1, -2), padding).transpose(-1, -2)
    mean, deviation = moments(Z, padding)
    highest = absent_keys(Z, padding).amax(dim=-1)
    features = torch.stack([mean, deviation, highest], dim=2)
    return blank(centre(blank(features, padding, 3), padding), key_padding_mask, 3)


def standardised(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return (x - mean) / std of `x` `[B, H, M, N]` over the valid N; 0 if padded or constant."""
    mean, centred, count = about_the_mean(x, padding)
    by = enlargement(centred.detach().square().sum(dim=-1) / count)
    centred = centred * by[..., None]
    deviation = root(centred.square().sum(dim=-1) / count)
    spread = deviation > CONSTANT * (mean * by).abs()
    inverse = torch.where(spread, 1 / deviation.where(spread, 1.0), 0.0)
    return centred * inverse[..., None]


def moments(x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean and std of `x` `[B, H, M, N]` over the valid N, `[B, H, M]`."""
    mean, centred, count = about_the_mean(x, padding)
    return mean, root(centred.square().sum(dim=-1) / count)


def about_the_mean(x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean over the valid N, `x` minus it (0 elsewhere), and the number of valid N."""
    there = x.new_ones(1, x.shape[-1], dtype=torch.bool) if padding is None else ~padding
    valid = there[:, None, None, :].to(x.dtype)
    count = valid.sum(dim=-1)
    mean = (x * valid).sum(dim=-1) / count
    return mean, (x - mean[..., None]) * valid, count


def root(variance: Tensor) -> Tensor:
    """Return the square root, with a zero gradient at 0."""
    spread = variance > 0
    return torch.where(spread, variance.where(spread, 1.0).sqrt(), 0.0)


def absent_keys(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return `x` `[B, H, N, M]` with -inf at padded keys."""
    return x if padding is None else x.masked_fill(padding[:, None, None, :], float("-inf"))
