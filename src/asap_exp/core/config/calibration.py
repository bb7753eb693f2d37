"""How a map is fitted."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from asap_exp.core.config.fields import (
    LARGEST_SETTING,
    MOST_REPEATS,
    MOST_SLICES,
    MOST_UPDATES,
    Rate,
    Seed,
    Size,
    above,
    at_least,
    at_most,
    one_of,
)
from asap_exp.core.errors import UserError, check_range

DESCENTS = ("kl", "learned_slices", "end_to_end")
"""The steps of a calibration that follow a gradient."""


@dataclass
class DescentConfig:
    """A fit by gradient: so many updates of Adam, from this learning rate to 0."""

    updates: Annotated[int, at_least(1), at_most(MOST_UPDATES)]
    lr: Rate


@dataclass
class CalibrationConfig:
    name: Annotated[str, one_of("ridge", *DESCENTS, "sequential")]
    steps: Annotated[list[str], one_of("ridge", *DESCENTS)]
    sequential: bool
    slices: Annotated[int, at_least(1), at_most(MOST_SLICES)]
    candidates: Annotated[int, at_most(10 * MOST_SLICES)]
    query_features: bool
    adaptive: bool
    logits: bool
    refine: Annotated[int, at_least(0), at_most(MOST_REPEATS)]
    relaxed: bool
    ridge: Annotated[float, above(0), at_most(LARGEST_SETTING)]
    kl: DescentConfig
    learned_slices: DescentConfig
    end_to_end: DescentConfig
    samples: Size
    holdout: Size
    batch_size: Size
    memory_mib: Size
    seed: Seed

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_range("calibration.candidates", self.candidates, minimum=self.slices)
        for key in ("adaptive", "logits"):
            if getattr(self, key) and not self.query_features:
                raise UserError(
                    f"calibration.{key}=true needs calibration.query_features=true, got false; set "
                    f"that, or calibration.{key}=false"
                )

    @property
    def relaxes(self) -> bool:
        """True where there are updates of which a step by gradient can learn how far they go."""
        return self.relaxed and self.refine > 0 and len(self.steps) > 1

    def identity(self) -> dict[str, Any]:
        """What decides the result: everything but the settings of what is not used."""
        unread = [step for step in DESCENTS if step not in self.steps]
        unread += [key for key in ("adaptive", "logits") if not getattr(self, key)]
        unread += [] if self.relaxes else ["relaxed"]
        return {key: value for key, value in asdict(self).items() if key not in unread}


def check_steps(steps: list[str]) -> None:
    """Raises UserError where the steps cannot follow each other so."""
    if not steps or steps[0] != "ridge" or len(set(steps)) < len(steps):
        raise UserError(
            f"calibration.steps={steps} must begin with ridge, which the other steps start from, "
            "and name no step twice"
        )
    if "end_to_end" in steps[:-1]:
        raise UserError(
            f"calibration.steps={steps}: end_to_end must come last, since the other steps look at "
            "one layer at a time"
        )
