"""Statistics of plans and of representations, by sample, that do not depend on their scale.

Plans are `[B, H, N, N]`, 0 at padded positions; representations `[B, N, dim]`; `key_padding_mask`
is `[B, N]`, True = padded, or None. A plan's entries may be negative, as in differential
attention, and its rows may sum to another number than 1: of every plan the absolute values are
taken. Sums and logarithms are in float64. A result is NaN where a plan has no mass.
"""

import torch
from torch import Tensor


def column_sums(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return c_j = n sum_i |A_ij| / sum_ij |A_ij| `[B, H, N]`, n valid tokens; their mean is 1.

    Of a plan whose rows sum to 1 they are its column sums, and all are 1 if it is doubly
    stochastic. Padded columns have 0.
    """
    sums = plan.double().abs().sum(dim=-2)
    counts = num_valid(plan, key_padding_mask)[:, None, None]
    return sums * counts / sums.sum(dim=-1, keepdim=True)


def largest_column_sum(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return max_j c_j `[B, H]`: between 1 and n, which one token gets that all attend to."""
    return column_sums(plan, key_padding_mask).amax(dim=-1)


def mean_column_error(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return mean_j |c_j - 1| over the valid tokens, `[B, H]`."""
    errors = (column_sums(plan, key_padding_mask) - 1).abs()
    return mean_of_tokens(errors, key_padding_mask)


def mean_row_entropy(plan: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return mean_i -sum_j p_ij log p_ij with p_ij = |A_ij| / sum_k |A_ik|, in nats, `[B, H]`."""
    rows = plan.double().abs()
    shares = rows / rows.sum(dim=-1, keepdim=True)
    return mean_of_tokens(torch.special.entr(shares).sum(dim=-1), key_padding_mask)


def largest_entropy(x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return log n `[B]`, n valid tokens, what a uniform row has; log 2 for a single token."""
    return num_valid(x, key_padding_mask).clamp(min=2).log()


def effective_rank(x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    """Return exp(-sum_k p_k log p_k) `[B]`, p_k the singular values over their sum.

    Of a sample's matrix of valid tokens, `[n, dim]`, not centred (Roy and Vetterli, The effective
    rank, EUSIPCO 2007): 1 if all tokens are multiples of one vector, min(n, dim) if all singular
    values are equal.
    """
    x = x.double()
    if key_padding_mask is not None:  # rows of zeros add singular values of 0 only
        x = x.masked_fill(key_padding_mask[..., None], 0.0)
    values = torch.linalg.svdvals(x)
    shares = values / values.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1).exp()


def num_valid(x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Return the number of valid tokens of each sample, float64 `[B]`; N is `x.shape[-2]`."""
    if key_padding_mask is None:
        return torch.full((len(x),), x.shape[-2], dtype=torch.float64, device=x.device)
    return (~key_padding_mask).sum(dim=-1).double()


def mean_of_tokens(x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Average `x` `[B, H, N]` over the valid tokens of each sample: `[B, H]`."""
    if key_padding_mask is None:
        return x.mean(dim=-1)
    counts = (~key_padding_mask).sum(dim=-1)
    return x.masked_fill(key_padding_mask[:, None, :], 0.0).sum(dim=-1) / counts[:, None]
