"""ASAP: the plan of a trained Sinkhorn layer in one shot, from fitted slices and weights."""

from torch import Tensor, nn

from asap_exp.attention.base import Attention, register
from asap_exp.ops import asap_attention, attention_plan, predicted_dual
from asap_exp.ops.backend import check_backend
from asap_exp.ops.checks import check_count, check_temperature


@register("asap")
class AsapAttention(Attention):
    """Compiled attention of one layer, with frozen weights from `distill`.

    `theta` `[H, L, D]` are the slices and `weight` `[H, L]` their weights. Optional features have
    `query_weight` `[H, D + 1]`, `adaptive_weight` `[H, 5, L]` and `logit_weight` `[H, 3]`;
    `relaxation` `[H]` relaxes the `refine` Sinkhorn updates.
    """

    needs_calibration = True

    def __init__(
        self,
        theta: Tensor,
        weight: Tensor,
        query_weight: Tensor | None = None,
        adaptive_weight: Tensor | None = None,
        logit_weight: Tensor | None = None,
        relaxation: Tensor | None = None,
        *,
        refine: int = 0,
        eps: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_count("refine", refine, 0)
        check_temperature(eps, None, 1)
        check_backend(backend)
        self.theta = nn.Parameter(theta, requires_grad=False)
        self.weight = nn.Parameter(weight, requires_grad=False)
        optional = (query_weight, adaptive_weight, logit_weight, relaxation)
        self.query_weight, self.adaptive_weight, self.logit_weight, self.relaxation = (
            None if given is None else nn.Parameter(given, requires_grad=False)
            for given in optional
        )
        self.refine, self.eps, self.backend = refine, eps, backend

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        return asap_attention(
            q,
            k,
            v,
            self.theta,
            self.weight,
            self.query_weight,
            adaptive_weight=self.adaptive_weight,
            logit_weight=self.logit_weight,
            refine=self.refine,
            relaxation=self.relaxation,
            eps=self.eps,
            key_padding_mask=key_padding_mask,
            backend=self.backend,
        )

    def dual(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Return the row dual `[B, H, N]` whose closure is this attention, including `refine`."""
        return predicted_dual(
            q,
            k,
            self.theta,
            self.weight,
            self.query_weight,
            adaptive_weight=self.adaptive_weight,
            logit_weight=self.logit_weight,
            refine=self.refine,
            relaxation=self.relaxation,
            eps=self.eps,
            key_padding_mask=key_padding_mask,
        )

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        f_hat = self.dual(q, k, key_padding_mask=key_padding_mask)
        return attention_plan(q, k, f_hat, eps=self.eps, key_padding_mask=key_padding_mask)

    def extra_repr(self) -> str:
        heads, slices, head_dim = self.theta.shape
        return f"heads={heads}, slices={slices}, head_dim={head_dim}, refine={self.refine}"
