"""The coarse dual of the queries, or of the keys: `asap_exp.ops.reference.coarse`."""

from torch import Tensor

from asap_exp.ops.features.base import Tokens, feature
from asap_exp.ops.masking import blank, centre, effective_padding
from asap_exp.ops.reference.coarse import coarse_col, coarse_ready


@feature("coarse", weight="coarse_weight", count=1, layout="[heads, 1]", order=3)
def _(tokens: Tokens) -> Tensor:
    settings, mask = tokens.coarse, tokens.key_padding_mask
    if settings is None:
        raise ValueError("the feature coarse needs its settings, coarse=CoarseSettings(tokens)")
    q, k = (tokens.k, tokens.q) if tokens.of_keys else (tokens.q, tokens.k)
    dual = (coarse_col if tokens.of_keys else coarse_ready)(
        q,
        k,
        *settings.subsets(q, k, mask),
        num_iters=settings.num_iters,
        eps=tokens.eps,
        scale=tokens.scale,
        key_padding_mask=mask,
    )
    return blank(centre(dual, effective_padding(mask)), mask, 2)[:, :, None]
