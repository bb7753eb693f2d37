"""ASAP attention: the row dual predicted from sliced potentials, then its closure.

    f_hat_i = sum_l w_l phi_l(i) + u . ([q_i ; |q_i|^2] - its mean over the valid tokens)
              + sum_l sum_p c_pl psi_pl(i) + sum_p d_p chi_p(i)

The first term is from ASAP (arXiv 2605.12879); the query features, the features psi of `adaptive`
and chi of `logit_rows`, and `refine` are this project's.
"""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.masking import blank, centre, compute_dtype, effective_padding
from asap_exp.ops.reference import adaptive, potentials
from asap_exp.ops.reference.logit_rows import logit_features
from asap_exp.ops.reference.sinkhorn import average_values, closure, logits, update


def query_features(q: Tensor, *, key_padding_mask: Tensor | None) -> Tensor:
    """Return [q_i ; |q_i|^2] centred over the valid tokens, `[B, H, D + 1, N]`; 0 if padded."""
    padding = effective_padding(key_padding_mask)
    q = blank(q, key_padding_mask, 2).to(compute_dtype(q))
    features = torch.cat([q, q.square().sum(dim=-1, keepdim=True)], dim=-1).transpose(-1, -2)
    return blank(centre(features, padding), key_padding_mask, 3)


def sliced_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Compute f_hat `[B, H, N]`, centred; 0 at padded positions."""
    x, y = potentials.projections(
        q, k, theta, eps=eps, scale=scale, key_padding_mask=key_padding_mask
    )
    factor = None
    if adaptive_weight is not None:
        x, y, factor = adaptive.enlarged(x, y, key_padding_mask)
    phi = potentials.of_projections(x, y, key_padding_mask)
    own_size = phi if factor is None else phi / factor
    f_hat = torch.einsum("hl,bhln->bhn", weight.to(phi.dtype), own_size)
    if query_weight is not None:
        features = query_features(q, key_padding_mask=key_padding_mask)
        f_hat = f_hat + torch.einsum("hp,bhpn->bhn", query_weight.to(phi.dtype), features)
    if adaptive_weight is not None:
        psi = adaptive.of_projections(phi, x, y, q, k, key_padding_mask)
        f_hat = f_hat + torch.einsum("hpl,bhpln->bhn", adaptive_weight.to(phi.dtype), psi)
    if logit_weight is not None:
        chi = logit_features(q, k, eps=eps, scale=scale, key_padding_mask=key_padding_mask)
        f_hat = f_hat + torch.einsum("hp,bhpn->bhn", logit_weight.to(phi.dtype), chi)
    return f_hat


def asap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    *,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    refine: int,
    relaxation: Tensor | None,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    options: dict[str, Any] = {"eps": eps, "scale": scale}
    q, k = (blank(x, key_padding_mask, 2).to(compute_dtype(x)) for x in (q, k))
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, mask=key_padding_mask, **options)
    weights = (theta, weight, query_weight, adaptive_weight, logit_weight)
    f_hat = sliced_dual(q, k, *weights, key_padding_mask=key_padding_mask, **options)
    f_hat = update(S, f_hat, refine, padding, relaxation)
    return average_values(closure(S, f_hat, padding), v, key_padding_mask)


def predicted_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    *,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    refine: int,
    relaxation: Tensor | None,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    options: dict[str, Any] = {"eps": eps, "scale": scale}
    q, k = (blank(x, key_padding_mask, 2).to(compute_dtype(x)) for x in (q, k))
    padding = effective_padding(key_padding_mask)
    weights = (theta, weight, query_weight, adaptive_weight, logit_weight)
    f_hat = sliced_dual(q, k, *weights, key_padding_mask=key_padding_mask, **options)
    if refine > 0:
        S = logits(q, k, mask=key_padding_mask, **options)
        f_hat = update(S, f_hat, refine, padding, relaxation)
    return blank(f_hat, key_padding_mask, 2)
