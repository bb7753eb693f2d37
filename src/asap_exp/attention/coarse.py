"""Coarse attention: Sinkhorn on some of the tokens, extended to all; to train, or without a fit."""

from typing import Any

from torch import Tensor

from asap_exp.attention.base import Attention, register
from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.ops import CoarseSettings, coarse_attention, coarse_plan, sinkhorn_attention
from asap_exp.ops.backend import check_backend, full_precision
from asap_exp.ops.checks import (
    check_among,
    check_count,
    check_mask,
    check_query_key,
    check_refine,
    check_switch,
    check_temperature,
)
from asap_exp.ops.subsets import CHOICES, GRIDS, WEIGHTS, check_grid, check_grid_width

NAMES = "subset", "grid_width"
"""Arguments that name choice and width."""


@register("coarse")
class CoarseAttention(Attention):
    """Plan of `num_iters` updates on `tokens` of the tokens, extended to all of them.

    `subset`, `weights`, `seed` and `grid_width` say which tokens, as `asap_exp.ops.choose_subset`
    does. The keys are chosen from; in cross-attention with another number of queries, these are
    chosen from by themselves. Closure of the predicted row dual, or, with `one_pass`, row softmax
    with the predicted column dual as a bias of the keys. With all tokens it is Sinkhorn attention.

    With `refine`, as many further updates over all pairs come before the closure, which is Sinkhorn
    of refine + 1 updates from the prediction instead of 0. The gradient goes through all of it, or
    is the implicit one by `implicit_steps` of conjugate gradients.
    """

    younger_options = ("refine", "implicit_steps")

    def __init__(
        self,
        *,
        tokens: int = 64,
        subset: str = "sequence",
        weights: str = "equal",
        seed: int = 0,
        grid_width: int = 0,
        one_pass: bool = False,
        num_iters: int = 20,
        refine: int = 0,
        implicit_steps: int | None = None,
        eps: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_count("tokens", tokens, 1)
        check_among("subset", subset, tuple(CHOICES))
        check_among("weights", weights, WEIGHTS)
        check_count("seed", seed, 0)
        check_count("grid_width", grid_width, 0)
        check_grid_width(subset, grid_width, NAMES)
        check_switch("one_pass", one_pass)
        check_count("num_iters", num_iters, 1)
        check_refine(refine, implicit_steps, one_pass=one_pass)
        check_temperature(eps, None, 1)
        check_backend(backend)
        self.tokens, self.subset, self.weights = tokens, subset, weights
        self.seed, self.grid_width = seed, grid_width
        self.one_pass, self.num_iters = one_pass, num_iters
        self.refine, self.implicit_steps = refine, implicit_steps
        self.eps, self.backend = eps, backend

    def check_tokens(self, tokens: int | None) -> None:
        if self.subset in GRIDS:
            check_fills_grid(self.subset, tokens, self.grid_width, "attention.{}", "subset")

    @property
    def settings(self) -> CoarseSettings:
        """Which tokens, and how many updates."""
        return CoarseSettings(
            self.tokens, self.subset, self.weights, self.num_iters, self.seed, self.grid_width
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        check_query_key(q, k)
        if max(q.shape[2], k.shape[2]) <= self.tokens:  # the same plan, by fewer launches
            return sinkhorn_attention(
                q,
                k,
                v,
                num_iters=self.num_iters + self.refine,
                implicit_steps=self.implicit_steps,
                eps=self.eps,
                key_padding_mask=key_padding_mask,
                backend=self.backend,
            )
        return coarse_attention(
            q,
            k,
            v,
            **self._options(q, k, key_padding_mask),
            implicit_steps=self.implicit_steps,
            backend=self.backend,
        )

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        check_query_key(q, k)
        return coarse_plan(q, k, **self._options(q, k, key_padding_mask))

    def _options(self, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> dict[str, Any]:
        """Choose the subsets; return the arguments of the operators."""
        check_mask(key_padding_mask, q, k)
        with full_precision(q):
            subset, key_subset = self.settings.subsets(q, k, key_padding_mask, NAMES)
        return {
            "subset": subset,
            "key_subset": key_subset,
            "num_iters": self.num_iters,
            "refine": self.refine,
            "one_pass": self.one_pass,
            "eps": self.eps,
            "key_padding_mask": key_padding_mask,
        }

    def extra_repr(self) -> str:
        form = "one_pass" if self.one_pass else "two-sided"
        which = f"subset={self.subset}"
        which += "" if self.weights == "equal" else f", weights={self.weights}"
        which += f", seed={self.seed}" if self.subset == "random" else ""
        which += f", grid_width={self.grid_width}" if self.grid_width else ""
        refine = f", refine={self.refine}" if self.refine else ""
        steps = self.implicit_steps
        implicit = "" if steps is None else f", implicit_steps={steps}"
        return (
            f"tokens={self.tokens}, {which}, {form}, num_iters={self.num_iters}, "
            f"eps={self.eps}{refine}{implicit}"
        )


def check_fills_grid(
    choice: str, tokens: int | None, grid_width: int, keys: str, asked_by: str
) -> None:
    """Raise UserError unless `tokens` tokens fill a grid; None are those of texts, which have none.

    `keys` is the form of the keys of the configuration; that of the choice is `asked_by`.
    """
    if tokens is None:
        raise UserError(
            f"{keys.format(asked_by)}={choice} is for images, and this model reads texts; "
            "take sequence, random, farthest or kmeans"
        )
    try:
        check_grid(
            choice, tokens, grid_width, None, (keys.format(asked_by), keys.format("grid_width"))
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def warn_if_all(tokens: int | None, taken: int, key: str) -> None:
    """Warn if a subset of `taken` tokens, as `key` says, is all `tokens` that each input has."""
    if tokens is not None and tokens <= taken:
        warn(
            f"{key}={taken} takes all {tokens} tokens of an image, which is Sinkhorn itself and "
            f"no faster; take fewer, such as {key}={max(tokens // 4, 1)}"
        )
