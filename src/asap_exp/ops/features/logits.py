"""Features of a query's row of logits: `asap_exp.ops.reference.logit_rows`."""

from torch import Tensor

from asap_exp.ops.features.base import Tokens, feature
from asap_exp.ops.reference import logit_rows


@feature(
    "logits",
    weight="logit_weight",
    count=logit_rows.COUNT,
    layout=f"[heads, {logit_rows.COUNT}]",
    order=2,
)
def _(tokens: Tokens) -> Tensor:
    q, k, eps, scale, mask = tokens[:5]
    return logit_rows.logit_features(q, k, eps=eps, scale=scale, key_padding_mask=mask)
