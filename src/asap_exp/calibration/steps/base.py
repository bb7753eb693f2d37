"""Interface of a calibration step: a name, a scope, settings and a fit.

A configuration is checked before torch is imported, so a step's file imports torch, and whatever
needs it, inside `fit` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from asap_exp.core.config.fields import MOST_UPDATES, Rate, at_least, at_most
from asap_exp.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from asap_exp.attention import AsapAttention, Attention
    from asap_exp.attention.learned import LearnedAttention
    from asap_exp.calibration.capture import Forward
    from asap_exp.calibration.config import CalibrationConfig
    from asap_exp.calibration.imitation import Imitated
    from asap_exp.calibration.kl import Target
    from asap_exp.calibration.maps import RidgeFit
    from asap_exp.calibration.prediction_fit import Example
    from asap_exp.calibration.ridge import NormalEquations

Shown = Callable[[Iterable[Any], int], Iterable[Any]]
"""Yields the items of a number of updates, and shows how many there were."""


def unseen(items: Iterable[Any], _: int) -> Iterable[Any]:
    return items


Scope = Literal["start", "layer", "model", "alone"]
SCOPES: tuple[Scope, ...] = ("start", "layer", "model", "alone")
"""Scopes, in the order in which a calibration takes them."""


@dataclass
class AdamFit:
    """Settings of a fit by gradient: the number of Adam's updates, and its first learning rate.

    The rate falls to 0 on a cosine.
    """

    updates: Annotated[int, at_least(1), at_most(MOST_UPDATES)]
    lr: Rate


class Step:
    """A step of a calibration, known to YAML by its name.

    `settings` is None, or a dataclass whose fields say what they may hold. The class holds the
    defaults of `asap_exp.compile`; conf/distill/calibration/ridge.yaml holds those of `distill`,
    under the step's name.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope]
    teacher: ClassVar[str] = "sinkhorn"
    """Attention of the layers that it is fitted to."""
    settings: Any = None
    shares_batches: ClassVar[bool] = False
    """Whether several ranks, each with its part of every batch, fit the same map together."""

    def __init__(self, settings: Any = None) -> None:
        if settings is not None:
            self.settings = settings

    @classmethod
    def defaults(cls) -> Any:
        """Return a copy of the default settings."""
        return replace(cls.settings)


class StartStep(Step):
    """Makes the maps that the other steps start from. Every calibration begins with one."""

    scope = "start"
    shares_batches = True  # the sums are already those of all ranks

    def fit(
        self, equations: NormalEquations, checks: NormalEquations, config: CalibrationConfig
    ) -> RidgeFit:
        """Return the map of one layer and its control, from sums over fitted and held-out data."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerData:
    """The recorded batches of one layer, to fit on and to check on."""

    fit: Sequence[Target]
    held_out: Sequence[Target]
    seed: int
    shown: Shown = unseen


class LayerStep(Step):
    """Moves the map of one layer; heads share no parameter, so it may hold those of several."""

    scope = "layer"

    def fit(self, attend: AsapAttention, scale: Tensor, data: LayerData) -> None:
        """Fit `attend` in place; no head may end worse on the held-out data than it began.

        `scale` `[H, P]` is the step size of each weight.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ModelData:
    """The teacher, with batches and its predictions on them, to fit on and to check on."""

    net: nn.Module
    fit: Sequence[Example]
    held_out: Sequence[Example]
    precision: str
    forward: Forward
    seed: int
    shown: Shown = unseen


class ModelStep(Step):
    """Moves the maps of all layers together. It comes after every step on single layers."""

    scope = "model"

    def fit(
        self, maps: Mapping[str, AsapAttention], scales: Mapping[str, Tensor], data: ModelData
    ) -> dict[str, float]:
        """Fit the maps (by layer path) in place.

        Returns the mean KL of the held-out predictions, in nats, `before` and `after`; the second
        may not be larger.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ImitationData:
    """The teacher's attention in a layer, and what it got, to fit on and to check on."""

    teacher: Attention
    fit: Sequence[Imitated]
    held_out: Sequence[Imitated]
    seed: int
    shown: Shown = unseen


class ImitationStep(Step):
    """Fits another attention than ASAP to the teacher's plans. It is a calibration by itself."""

    scope = "alone"
    attention: ClassVar[str]
    """Name of the attention, a `LearnedAttention`, that takes the place of the teacher's."""

    def fit(self, attend: LearnedAttention, data: ImitationData) -> None:
        """Fit the parameters of `attend` in place.

        No head may end worse on the held-out data than it began.
        """
        raise NotImplementedError


STEPS: dict[str, type[Step]] = {}
"""Every step by name: starts, then steps on single layers, on the whole model, and those alone."""

AnyStep = TypeVar("AnyStep", bound=type[Step])


def register(name: str) -> Callable[[AnyStep], AnyStep]:
    """Make a step known as an item of `calibration.steps`, its settings as `calibration.NAME`.

    Raises UserError if another step has the name.
    """

    def add(cls: AnyStep) -> AnyStep:
        other = STEPS.get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"the calibration step {name} of {cls.__module__} has the name of one of "
                f"{other.__module__}; choose another"
            )
        cls.name = name
        STEPS[name] = cls
        in_order = sorted(STEPS.items(), key=lambda item: (SCOPES.index(item[1].scope), item[0]))
        STEPS.clear()
        STEPS.update(in_order)
        return cls

    return add


def names_of(*kinds: type[Step]) -> list[str]:
    """Return the registered steps of these kinds, subclasses of `Step`, by name."""
    return [name for name, step in STEPS.items() if issubclass(step, kinds)]


def with_settings() -> dict[str, type[Step]]:
    """Return the registered steps that have settings."""
    return {name: step for name, step in STEPS.items() if step.settings is not None}
