"""Interface of an attention: an nn.Module on q, k, v, registered under a name."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from asap_exp.core.errors import UserError
from asap_exp.core.renamed import FITTED
from asap_exp.core.schema import unknown_option

ATTENTIONS: dict[str, type["Attention"]] = {}
"""The registered attentions, by the name that YAML and the command line use."""


class Attention(nn.Module, ABC):
    """Map from q `[B, H, N, D]`, k `[B, H, M, D]`, v `[B, H, M, E]` to `[B, H, N, E]`.

    `key_padding_mask` `[B, N]`, True = padded. Projections, the norms on q and k and the output
    layer belong to `MultiHeadAttention`. Keyword arguments of `__init__` are the options that YAML
    may set under `attention`.
    """

    name: ClassVar[str]
    needs_calibration: ClassVar[bool] = False
    """True if the weights come from `distill`, so that `train` cannot build it."""

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor: ...

    @abstractmethod
    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Return the attention matrix `[B, H, N, M]`; for diagnostics, never on a hot path."""


def padded_pairs(key_padding_mask: Tensor) -> Tensor:
    """Return `[B, 1, N, N]`, True where the query or the key is padded and the plan is zero."""
    return key_padding_mask[:, None, :, None] | key_padding_mask[:, None, None, :]


def register(name: str) -> Callable[[type[Attention]], type[Attention]]:
    """Register an attention for YAML as `attention: {name: NAME, ...}`."""

    def add(cls: type[Attention]) -> type[Attention]:
        cls.name = name
        ATTENTIONS[name] = cls
        return cls

    return add


def attention_class(name: str) -> type[Attention]:
    """Return the attention registered as `name`, or raise UserError with the known names."""
    if name not in ATTENTIONS:
        raise UserError(
            f"attention.name={name} is unknown; choose one of {', '.join(sorted(ATTENTIONS))}"
        )
    return ATTENTIONS[name]


def attention_options(name: str) -> tuple[str, ...]:
    """Return the options that `attention.<option>` may set for this kind."""
    parameters = inspect.signature(attention_class(name).__init__).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def canonical_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{name, **options}` with defaults filled in and integers converted for float options.

    Equal attentions get equal configurations, however they were written.
    """
    parameters = inspect.signature(attention_class(config["name"]).__init__).parameters
    canonical = dict(config)
    for option in attention_options(config["name"]):
        default = parameters[option].default
        value = config.get(option, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        canonical[option] = float(value) if isinstance(default, float) and whole else value
    return canonical


def build_attention(config: Mapping[str, Any]) -> Attention:
    """Build a trainable attention from `{name, **options}`; raise UserError for a wrong option."""
    options = {key: value for key, value in config.items() if key != "name"}
    cls = attention_class(config["name"])
    if cls.needs_calibration:
        raise UserError(FITTED.format(name=cls.name))
    allowed = attention_options(cls.name)
    for key, value in options.items():
        if key not in allowed:
            raise unknown_option(cls.name, key, value, allowed)
    try:
        return cls(**options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"attention={cls.name}: {error}") from error
