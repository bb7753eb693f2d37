"""The query itself and its squared norm: [q_i ; |q_i|^2]."""

import torch
from torch import Tensor

from asap_exp.ops.features.base import Tokens, feature
from asap_exp.ops.masking import blank, centre, compute_dtype, effective_padding


def query_features(q: Tensor, *, key_padding_mask: Tensor | None) -> Tensor:
    """Return [q_i ; |q_i|^2] centred over the valid tokens, `[B, H, D + 1, N]`; 0 if padded."""
    padding = effective_padding(key_padding_mask)
    q = blank(q, key_padding_mask, 2).to(compute_dtype(q))
    features = torch.cat([q, q.square().sum(dim=-1, keepdim=True)], dim=-1).transpose(-1, -2)
    return blank(centre(features, padding), key_padding_mask, 3)


@feature(
    "query_features",
    weight="query_weight",
    count=lambda head_dim: head_dim + 1,
    layout="[heads, head_dim + 1]",
    order=0,
)
def _(tokens: Tokens) -> Tensor:
    return query_features(tokens.q, key_padding_mask=tokens.key_padding_mask)
