"""Interface of an attention: an nn.Module on q, k, v, registered under a name."""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from asap_exp.core import plugins
from asap_exp.core.attention_options import declare, options_of, unknown_option
from asap_exp.core.errors import UserError, check_name

ATTENTIONS: dict[str, type["Attention"]] = {}
"""The registered attentions, by the name that YAML and the command line use."""


class Attention(nn.Module, ABC):
    """Map from q `[B, H, N, D]`, k `[B, H, M, D]`, v `[B, H, M, E]` to `[B, H, N, E]`.

    `key_padding_mask` `[B, N]`, True = padded. Projections, the norms on q and k and the output
    layer belong to `MultiHeadAttention`. Keyword arguments of `__init__` are the options that YAML
    may set under `attention`.
    """

    name: ClassVar[str]
    """The registered name, or that of the class."""
    needs_calibration: ClassVar[bool] = False
    """True if the weights come from `distill`, so that `train` cannot build it."""
    younger_options: ClassVar[tuple[str, ...]] = ()
    """Options that the first runs lack: at their defaults, they are no part of a run's identity."""
    takes_bias: ClassVar[bool] = False
    """True if `forward` takes `bias`, added to the logits, and `dropout` of attention weights."""
    depth: int = 0
    """Place of its layer among the attention layers of the model, counted from 0."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls, "name"):
            cls.name = cls.__qualname__
        cls.takes_bias = "bias" in inspect.signature(cls.forward).parameters

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
    ) -> Tensor: ...

    @abstractmethod
    def plan(self, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Return the attention matrix `[B, H, N, M]`; for diagnostics, never on a hot path."""

    def check_tokens(self, tokens: int | None) -> None:
        """Raise UserError if inputs cannot have this many tokens; None: numbers differ."""

    def attach(self, layer: nn.Module) -> None:
        """Make what depends on the layer whose `attend` this becomes, such as parameters."""


def padded_pairs(key_padding_mask: Tensor) -> Tensor:
    """Return `[B, 1, N, N]`, True where the query or the key is padded and the plan is zero."""
    return key_padding_mask[:, None, :, None] | key_padding_mask[:, None, None, :]


def register(name: str) -> Callable[[type[Attention]], type[Attention]]:
    """Register an attention for YAML as `attention: {name: NAME, ...}`.

    Its options are the keywords of `__init__`: numbers, texts, true or false. An annotation may
    hold rules of `asap_exp.core.config.fields`, for example `Annotated[float, above(0)]`. Raises
    UserError if another class has the name.
    """
    check_name("attention", name)

    def add(cls: type[Attention]) -> type[Attention]:
        other = ATTENTIONS.get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"the attention {name} of {cls.__module__} has the name of one of "
                f"{other.__module__}; choose another"
            )
        if not cls.needs_calibration:
            declare(name, cls.__init__)
        cls.name = name
        ATTENTIONS[name] = cls
        return cls

    return add


def attention_class(name: str) -> type[Attention]:
    """Return the attention registered as `name`, or raise UserError with the known names.

    An installed package that registers it is imported.
    """
    if name not in ATTENTIONS:
        options_of(name)
    return ATTENTIONS[name]


def attention_options(name: str) -> tuple[str, ...]:
    """Return the options that `attention.<option>` may set for this kind."""
    parameters = inspect.signature(attention_class(name).__init__).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def attention_origin(name: str) -> dict[str, Any]:
    """Return the entry of a manifest about an attention of another package; empty if built in."""
    return plugins.origins([("attention", name, attention_class(name))])


def without_younger(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{name, **options}` without younger options at their defaults.

    What was saved before there were these options is then still equal to what is built today.
    """
    cls = attention_class(config["name"])
    parameters = inspect.signature(cls.__init__).parameters
    return {
        key: value
        for key, value in config.items()
        if not (key in cls.younger_options and value == parameters[key].default)
    }


def canonical_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{name, **options}` with defaults filled in and integers converted for float options.

    Equal attentions get equal configurations, however they were written.
    """
    cls = attention_class(config["name"])
    parameters = inspect.signature(cls.__init__).parameters
    canonical = dict(config)
    for option in attention_options(config["name"]):
        default = parameters[option].default
        if default is inspect.Parameter.empty:  # checked to be given
            continue
        value = config.get(option, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        canonical[option] = float(value) if isinstance(default, float) and whole else value
    return without_younger(canonical)


def attention_config(attend: Attention) -> dict[str, Any]:
    """`{name, **options}`, as `build_attention` takes it; the backend is the machine's choice.

    Of an attention that is not registered it is the name alone.
    """
    if attend.name not in ATTENTIONS:
        return {"name": attend.name}
    names = [option for option in attention_options(attend.name) if option != "backend"]
    values = {name: getattr(attend, name) for name in names}
    options = {
        name: value._asdict() if hasattr(value, "_asdict") else value
        for name, value in values.items()
    }
    return without_younger({"name": attend.name, **options})


def as_tensor(config: Mapping[str, Any]) -> Tensor:
    """Return `{name, **options}` as the bytes of its JSON, which no cast of a model changes."""
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def config_in(told: Any, key: str) -> dict[str, Any]:
    """Return what `as_tensor` wrote; UserError if it did not write this, the value of `key`."""
    try:
        config = json.loads(bytes(told.tolist()))
        if not isinstance(config["name"], str):
            raise TypeError("its name is no text")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the state_dict is damaged: {key} names no attention ({error})") from error
    return config


def build_attention(config: Mapping[str, Any]) -> Attention:
    """Build a trainable attention from `{name, **options}`; raise UserError for a wrong option."""
    name = config.get("name") if isinstance(config, Mapping) else None
    if not isinstance(name, str):
        raise UserError(
            'an attention is built from a mapping with its name and options, for example {"name": '
            f'"sinkhorn", "num_iters": 20}}; got {config!r}'
        )
    options = {key: value for key, value in config.items() if key != "name"}
    cls = attention_class(name)
    if cls.needs_calibration:
        raise UserError(
            f"attention={name} is not trained: asap_exp.compile fits it to a model with Sinkhorn "
            "attention, and asap_exp.load_compiled puts what was saved into such a model"
        )
    allowed = attention_options(cls.name)
    for key, value in options.items():
        if key not in allowed:
            raise unknown_option(cls.name, key, value, allowed)
    try:
        return cls(**options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"attention={cls.name}: {error}") from error
