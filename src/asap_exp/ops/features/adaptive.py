"""Features that adapt to the sample: `asap_exp.ops.reference.adaptive`."""

from torch import Tensor

from asap_exp.ops.features.base import Tokens, feature
from asap_exp.ops.reference import adaptive


@feature(
    "adaptive",
    weight="adaptive_weight",
    per_slice=True,
    count=adaptive.COUNT,
    layout=f"[heads, {adaptive.COUNT}, slices]",
    order=1,
)
def _(tokens: Tokens) -> Tensor:
    q, k, phi, x, y = tokens.q, tokens.k, tokens.phi, tokens.x, tokens.y
    assert phi is not None
    assert x is not None
    assert y is not None
    return adaptive.of_projections(phi, x, y, q, k, tokens.key_padding_mask)
