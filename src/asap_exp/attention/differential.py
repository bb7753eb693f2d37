"""Differential attention: the difference of two softmax maps, whose plan has negative entries.

The first half of the channels of a head makes one map and the second half another. With D channels
per head, q = [q1, q2], k = [k1, k2] and all of v for both,

    A = softmax(q1 k1^T / sqrt(D/2)) - lambda softmax(q2 k2^T / sqrt(D/2)),
    out = (1 - lambda_init) weight * A v / rms(A v),

with the root mean square rms over the channels of a head, one learned weight per channel, and

    lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init,
    lambda_init = 0.8 - 0.6 exp(-0.3 depth),   depth = 0, 1, ... of the layer in its model,

for learned vectors lq1, lk1, lq2, lk2 of D/2 values, which start as normal with deviation 0.1.

Inside are the halves of q and k, both maps, lambda, the norm of each head and its factor. Outside
stays what the layer and the model decide: the projections, and the number of heads, which the
published model halves so that D is twice as large with as many weights (set `model.heads` to half).
A norm on q and k (`model.qk_norm`) is over all D channels here.

`plan` is A. Its rows sum to 1 - lambda, not to 1; the output is A v only before the norm, which
depends on v. Source: Differential Transformer, arXiv 2410.05258; one lambda is shared by all heads
there, which is `lambda_per: layer`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap_exp.attention.base import register
from asap_exp.attention.learned import LearnedAttention
from asap_exp.attention.softmax import SoftmaxAttention
from asap_exp.core.errors import UserError
from asap_exp.ops import softmax_attention
from asap_exp.ops.backend import full_precision
from asap_exp.ops.checks import check_among
from asap_exp.ops.masking import blank, compute_dtype

LAMBDA_PER = ("head", "layer")
LAMBDA_STD = 0.1
NORM_EPS = 1e-5


@register("differential")
class DifferentialAttention(LearnedAttention):
    """Difference of two softmax attentions, normalised per head.

    lambda is learned per head, or with `lambda_per` "layer" one for all heads of a layer.
    """

    norm_weight: Tensor | None
    parameter_names = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "norm_weight")

    def __init__(self, *, lambda_per: str = "head") -> None:
        check_among("lambda_per", lambda_per, LAMBDA_PER)
        super().__init__()
        self.lambda_per = lambda_per

    @property
    def lambda_init(self) -> float:
        """The part of lambda that is not learned, by the depth of the layer."""
        return 0.8 - 0.6 * math.exp(-0.3 * self.depth)

    def attach(self, layer: nn.Module) -> None:
        head_dim = getattr(layer, "head_dim", None)
        if isinstance(head_dim, int) and head_dim % 2:
            raise UserError(
                f"differential attention halves the channels of a head, so that their number must "
                f"be even; got {head_dim}, dim / num_heads (of a run, model.dim / model.heads)"
            )
        super().attach(layer)

    def start(self, heads: int, head_dim: int, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
        count = heads if self.lambda_per == "head" else 1
        vectors = self.parameter_names[:4]
        found = {name: LAMBDA_STD * normal(count, head_dim // 2) for name in vectors}
        device = found["lambda_q1"].device
        return {**found, "norm_weight": torch.ones(head_dim, device=device)}

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        with full_precision(q):
            (q1, q2), (k1, k2) = halves(q), halves(k)
            dtype = compute_dtype(v)
            first, second = (
                softmax_attention(*pair, v, key_padding_mask=key_padding_mask).to(dtype)
                for pair in ((q1, k1), (q2, k2))
            )
            out = F.rms_norm(first - self.weight(q, dtype) * second, v.shape[-1:], eps=NORM_EPS)
            if self.norm_weight is not None:  # without a layer it would be 1
                out = out * self.norm_weight.to(dtype)
            return ((1 - self.lambda_init) * out).to(v.dtype)

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Return A `[B, H, N, M]`; entries may be negative, and rows sum to 1 - lambda."""
        with full_precision(q):
            q, k = (blank(x, key_padding_mask, 2) for x in (q, k))
            softmax = SoftmaxAttention()
            first, second = (
                softmax.plan(*pair, key_padding_mask=key_padding_mask)
                for pair in zip(halves(q), halves(k), strict=True)
            )
            return first - self.weight(q, first.dtype) * second

    def weight(self, q: Tensor, dtype: torch.dtype) -> Tensor:
        """Return lambda `[H or 1, 1, 1]`."""
        learned = self.learned(q, dtype)
        one, two = (
            (learned[f"lambda_q{i}"] * learned[f"lambda_k{i}"]).sum(dim=-1).exp() for i in (1, 2)
        )
        return (one - two + self.lambda_init)[:, None, None]

    def extra_repr(self) -> str:
        return f"lambda_per={self.lambda_per}, lambda_init={self.lambda_init:.3f}"


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split `[B, H, N, D]` into the channels of the two maps; ValueError for an odd D."""
    if x.shape[-1] % 2:
        raise ValueError(f"differential attention needs an even head_dim, got {x.shape[-1]}")
    first, second = x.chunk(2, dim=-1)
    return first, second
