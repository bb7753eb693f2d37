"""Padding as marginals: a padded token has no mass, as a query or as a key.

Two rules keep the contents of padded positions, NaN and inf included, out of every valid output and
gradient: padded inputs are replaced (by selection, not multiplication) before any arithmetic, and a
log-sum-exp excludes a padded term by adding -inf to a finite logit.
"""

import torch
from torch import Tensor


def effective_padding(key_padding_mask: Tensor | None) -> Tensor | None:
    """Return the mask to compute with: a sample without a valid token counts as unpadded.

    The logits of such a sample are all zero (`blank` replaced every input), so everything stays
    finite; the caller's original mask blanks the results.
    """
    if key_padding_mask is None:
        return None
    has_valid = (~key_padding_mask).any(dim=-1, keepdim=True)
    return key_padding_mask & has_valid


def blank(x: Tensor, key_padding_mask: Tensor | None, token_dim: int) -> Tensor:
    """Return `x` `[B, ...]` with zeros at padded tokens along `token_dim`."""
    if key_padding_mask is None:
        return x
    shape = [1] * x.dim()
    shape[0], shape[token_dim] = key_padding_mask.shape
    return x.masked_fill(key_padding_mask.view(shape), 0.0)


def absent(vector: Tensor, padding: Tensor | None) -> Tensor:
    """Return `vector` `[B, H, N]` with -inf at padded tokens, which then have no mass."""
    if padding is None:
        return vector
    return vector.masked_fill(padding[:, None, :], float("-inf"))


def centre(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return `x` `[B, ..., N]` minus its mean over the valid tokens; padded positions become 0.

    `x` must be 0 at padded positions.
    """
    if padding is None:
        return x - x.mean(dim=-1, keepdim=True)
    shape = (x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
    padded = padding.view(shape)
    num_valid = (~padded).sum(dim=-1, keepdim=True)
    return (x - x.sum(dim=-1, keepdim=True) / num_valid).masked_fill(padded, 0.0)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of logits, duals and sums: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
