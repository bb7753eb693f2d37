"""ASAP: the plan of a trained Sinkhorn layer in one shot, from fitted slices and weights."""

import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from asap_exp.attention.base import Attention, register
from asap_exp.core.errors import UserError
from asap_exp.ops import (
    CoarseSettings,
    SlicedMap,
    attention_plan,
    map_attention,
    map_dual,
    one_pass_plan,
)
from asap_exp.ops.backend import check_backend
from asap_exp.ops.checks import check_count, check_switch, check_temperature
from asap_exp.ops.sliced_map import MAP_TENSORS
from asap_exp.ops.subsets import CHOICES, WEIGHTS

FROZEN = (
    "a compiled model is frozen (requires_grad=False). model.requires_grad_() lets it train; its "
    "maps were fitted to the activations that it had, so ask asap_exp.drift afterwards"
)


@register("asap")
class AsapAttention(Attention):
    """Attention with a fitted `SlicedMap`, whose tensors are its frozen parameters.

    It is the closure of the dual that the map predicts of the queries, after `refine` updates, or
    with a map of `one_pass` row softmax with the predicted dual of the keys as a bias.
    """

    needs_calibration = True
    younger_options = ("coarse", "one_pass")
    theta: Tensor
    weight: Tensor
    relaxation: Tensor | None

    def __init__(
        self,
        theta: Tensor,
        weight: Tensor,
        *more: Tensor | None,
        refine: int = 0,
        eps: float = 1.0,
        coarse: CoarseSettings | Mapping[str, Any] | None = None,
        one_pass: bool = False,
        backend: str = "auto",
        **named: Tensor | None,
    ) -> None:
        """`more` and `named` are the other tensors of `SlicedMap`, in their order or by name."""
        super().__init__()
        check_count("refine", refine, 0)
        check_temperature(eps, None, 1)
        check_backend(backend)
        tensors = SlicedMap(theta, weight, *more, **named).tensors  # type: ignore[arg-type]
        for name, x in zip(MAP_TENSORS, tensors, strict=True):
            setattr(self, name, None if x is None else nn.Parameter(x, requires_grad=False))
        self.coarse = CoarseSettings(**coarse) if isinstance(coarse, Mapping) else coarse
        if self.coarse is not None:
            self.coarse.validate()
        check_switch("one_pass", one_pass)
        if one_pass and refine:
            raise ValueError(
                f"refine={refine} updates the dual of the queries, and one_pass=True has that of "
                "the keys alone; set refine=0, or one_pass=False"
            )
        self.refine, self.eps, self.backend = refine, eps, backend
        self.one_pass = one_pass

    @classmethod
    def of(cls, map: SlicedMap, **options: Any) -> Self:
        """Build the attention with `map`; `options` are `refine`, `eps` and `backend`."""
        return cls(**map._asdict(), **options)

    def get_extra_state(self) -> Tensor:
        """Return what is no tensor of a map, so that a state_dict says all that there is to it."""
        numbers: list[float] = [self.refine, self.eps]
        if self.coarse is not None:
            tokens, choice, weights, *others = self.coarse
            numbers += [tokens, list(CHOICES).index(choice), WEIGHTS.index(weights), *others]
        numbers += [1.0] if self.one_pass else []  # older maps, of two sides, say nothing
        return torch.tensor(numbers, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        options = options_in(state)
        self.refine, self.eps = options["refine"], options["eps"]
        self.coarse, self.one_pass = options["coarse"], options["one_pass"]

    def train(self, mode: bool = True) -> Self:
        """Set the mode as any module does; warn that a frozen map stops a backward pass."""
        if mode and not any(parameter.requires_grad for parameter in self.parameters()):
            warnings.warn(FROZEN, stacklevel=2)
        return super().train(mode)

    @property
    def map(self) -> SlicedMap:
        return SlicedMap.of({name: getattr(self, name) for name in SlicedMap._fields})

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        return map_attention(
            q,
            k,
            v,
            self.map,
            refine=self.refine,
            eps=self.eps,
            key_padding_mask=key_padding_mask,
            backend=self.backend,
        )

    def dual(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Compute the row dual `[B, H, N]` whose closure is returned, `refine` included.

        With `one_pass`, the dual of the keys `[B, H, M]`.
        """
        return map_dual(
            q, k, self.map, refine=self.refine, eps=self.eps, key_padding_mask=key_padding_mask
        )

    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        predicted = self.dual(q, k, key_padding_mask=key_padding_mask)
        plan_of = one_pass_plan if self.one_pass else attention_plan
        return plan_of(q, k, predicted, eps=self.eps, key_padding_mask=key_padding_mask)

    def extra_repr(self) -> str:
        heads, slices, head_dim = self.theta.shape
        coarse = "" if self.coarse is None else f", coarse={self.coarse.tokens} tokens"
        form = "one_pass" if self.one_pass else f"refine={self.refine}"
        return f"heads={heads}, slices={slices}, head_dim={head_dim}, {form}{coarse}"


def options_in(state: Tensor) -> dict[str, Any]:
    """Return the options that `AsapAttention.get_extra_state` wrote, by name.

    UserError if it did not write this.
    """
    try:
        return options_of_numbers(state.tolist())
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"the state_dict is damaged: what it says of a map's options is not ({error})"
        ) from error


def options_of_numbers(numbers: list[float]) -> dict[str, Any]:
    refine, eps, *coarse = numbers
    one_pass = len(coarse) % len(CoarseSettings._fields) == 1
    if one_pass:
        coarse.pop()
    settings = None
    if coarse:
        tokens, choice, weights, *others = map(int, coarse)
        settings = CoarseSettings(tokens, list(CHOICES)[choice], WEIGHTS[weights], *others)
    return {"refine": int(refine), "eps": eps, "coarse": settings, "one_pass": one_pass}
