"""ASAP attention: a dual predicted from sliced potentials, then its closure or one pass.

    f_hat_i = sum_l w_l phi_l(i) + u . ([q_i ; |q_i|^2] - its mean over the valid tokens)
              + sum_l sum_p c_pl psi_pl(i) + sum_p d_p chi_p(i) + a f^C(i)

The first term is from ASAP (arXiv 2605.12879); the query features, the features psi of `adaptive`
and chi of `logit_rows`, the coarse dual f^C of `coarse`, and `refine` are this project's. So is the
map of one pass: with queries and keys in each other's place the same sum predicts the dual g of the
keys, and the plan is softmax_j(S + g).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asap_exp.ops.coarse_settings import CoarseSettings
from asap_exp.ops.features import FEATURES, Tokens
from asap_exp.ops.masking import blank, compute_dtype, effective_padding
from asap_exp.ops.reference import adaptive, potentials
from asap_exp.ops.reference.sinkhorn import average_values, closure, logits, one_pass, update

if TYPE_CHECKING:  # a map knows its features, whose reference this package has
    from asap_exp.ops.sliced_map import SlicedMap


def map_features(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    phi: Tensor,
    names: tuple[str, ...],
    *,
    coarse: CoarseSettings | None,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    of_keys: bool = False,
) -> list[Tensor]:
    """Compute the named kinds of features, each `[B, H, its total, N]`, from potentials `phi`."""
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    chosen = [FEATURES[name] for name in names]
    q, k = (k, q) if of_keys else (q, k)
    tokens = Tokens(q, k, **options, coarse=coarse, of_keys=of_keys)
    if any(feature.per_slice for feature in chosen):
        x, y = potentials.projections(q, k, theta, **options)
        x, y, factor = adaptive.enlarged(x, y, key_padding_mask)
        tokens = tokens._replace(phi=phi * factor, x=x, y=y)
    return [feature.flat(tokens) for feature in chosen]


def sliced_dual(
    q: Tensor,
    k: Tensor,
    map: "SlicedMap",
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Compute f_hat `[B, H, N]`, or that of the keys `[B, H, M]`, centred; 0 if padded."""
    options: dict[str, Any] = {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
    q, k = (k, q) if map.one_pass else (q, k)
    used = list(map.features())
    x, y = potentials.projections(q, k, map.theta, **options)
    factor = None
    if any(feature.per_slice for feature, _ in used):
        x, y, factor = adaptive.enlarged(x, y, key_padding_mask)
    phi = potentials.of_projections(x, y, key_padding_mask)
    own_size = phi if factor is None else phi / factor
    f_hat = torch.einsum("hl,bhln->bhn", map.weight.to(phi.dtype), own_size)
    of_keys = map.one_pass
    tokens = Tokens(q, k, **options, phi=phi, x=x, y=y, coarse=map.coarse, of_keys=of_keys)
    for feature, weight in used:
        f_hat = f_hat + feature.weighted(weight, tokens)
    return f_hat


def map_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    map: "SlicedMap",
    *,
    refine: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    options: dict[str, Any] = {"eps": eps, "scale": scale}
    q, k = (blank(x, key_padding_mask, 2).to(compute_dtype(x)) for x in (q, k))
    padding = effective_padding(key_padding_mask)
    S = logits(q, k, mask=key_padding_mask, **options)
    f_hat = sliced_dual(q, k, map, key_padding_mask=key_padding_mask, **options)
    if map.one_pass:
        return average_values(one_pass(S, f_hat, padding), v, key_padding_mask)
    f_hat = update(S, f_hat, refine, padding, map.relaxation)
    return average_values(closure(S, f_hat, padding), v, key_padding_mask)


def map_dual(
    q: Tensor,
    k: Tensor,
    map: "SlicedMap",
    *,
    refine: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    options: dict[str, Any] = {"eps": eps, "scale": scale}
    q, k = (blank(x, key_padding_mask, 2).to(compute_dtype(x)) for x in (q, k))
    padding = effective_padding(key_padding_mask)
    f_hat = sliced_dual(q, k, map, key_padding_mask=key_padding_mask, **options)
    if refine > 0:
        S = logits(q, k, mask=key_padding_mask, **options)
        f_hat = update(S, f_hat, refine, padding, map.relaxation)
    return blank(f_hat, key_padding_mask, 2)
