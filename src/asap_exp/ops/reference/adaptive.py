"""Features of a query that adapt to the sample: to its scale and to the position of its tokens.

With the projections x_i = <q_i, theta> and y_j = (scale / eps) <k_j, theta> on a slice, their
standard deviations over the valid tokens, and x^, y^ standardised by them, the five features are

    phi_i / (std x std y),   <q_i, sum_j p_j k_j> with p = softmax(y^) and with p = softmax(-y^),
                             <q_i, sum_j p_j q_j> with p = softmax(x^) and with p = softmax(-x^).

The first does not grow with the sample's scale as phi does. The others are linear in q_i, along the
mean of the tokens at either end of the slice. (They are this project's.)
"""

import torch
from torch import Tensor

from asap_exp.ops.masking import blank, centre, effective_padding
from asap_exp.ops.reference import potentials
from asap_exp.ops.reference._enlarging import enlargement

COUNT = 5
"""Features per slice."""


def adaptive_features(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    phi: Tensor | None = None,
) -> Tensor:
    """Compute the features `[B, H, 5, L, N]`, centred over the valid tokens; 0 at padded positions.

    Pass `phi` to reuse the sliced potentials.
    """
    x, y = potentials.projections(
        q, k, theta, eps=eps, scale=scale, key_padding_mask=key_padding_mask
    )
    x, y, factor = enlarged(x, y, key_padding_mask)
    phi = potentials.of_projections(x, y, key_padding_mask) if phi is None else phi * factor
    return of_projections(phi, x, y, q, k, key_padding_mask)


def enlarged(
    x: Tensor, y: Tensor, key_padding_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return projections, scaled up if tiny, and the resulting factor of their potentials.

    The scaling does not change the features.
    """
    padding = effective_padding(key_padding_mask)
    by_x, by_y = (enlargement(centred(z.detach(), padding)[1]) for z in (x, y))
    return x * by_x, y * by_y, by_x * by_y


def of_projections(
    phi: Tensor, x: Tensor, y: Tensor, q: Tensor, k: Tensor, key_padding_mask: Tensor | None
) -> Tensor:
    """Compute the features from centred potentials and projections `[B, H, L, N]`, q and k."""
    padding = effective_padding(key_padding_mask)
    q, k = (blank(z, key_padding_mask, 2).to(x.dtype) for z in (q, k))
    (x, x_scale), (y, y_scale) = (standardised(projection, padding) for projection in (x, y))
    pools = [
        pooled(sign * projection, tokens, padding)
        for projection, tokens in ((y, k), (x, q))
        for sign in (1, -1)
    ]
    linear = torch.stack(pools, dim=2) @ q[:, :, None].transpose(-1, -2)
    if padding is not None:
        linear = linear.masked_fill(padding[:, None, None, None, :], 0.0)
    features = [(phi * x_scale * y_scale)[:, :, None], centre(linear, padding)]
    return blank(torch.cat(features, dim=2), key_padding_mask, 4)


def standardised(x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (x - mean) / std over the valid tokens, and 1 / std `[.., 1]`; 0 where std is 0."""
    x, variance = centred(x, padding)
    spread = variance > 0
    inverse = torch.where(spread, variance.where(spread, 1.0).rsqrt(), 0.0)
    return x * inverse, inverse


def centred(x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return x - mean over the valid tokens, and the variance `[.., 1]`."""
    x = centre(x if padding is None else x.masked_fill(padding[:, None, None, :], 0.0), padding)
    count = x.shape[-1] if padding is None else (~padding).sum(dim=-1)[:, None, None, None]
    return x, x.square().sum(dim=-1, keepdim=True) / count


def pooled(score: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Return sum_j softmax_j(score) tokens_j, `[B, H, L, D]`."""
    if padding is not None:
        score = score.masked_fill(padding[:, None, None, :], float("-inf"))
    return score.softmax(dim=-1) @ tokens
