"""The keys of `calibration`: how maps are fitted. Every registered step adds its settings."""

from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from asap_exp.calibration.steps import (
    STEPS,
    ModelStep,
    StartStep,
    Step,
    names_of,
    with_settings,
)
from asap_exp.core.config.fields import (
    LARGEST_SETTING,
    MOST_REPEATS,
    MOST_SLICES,
    Seed,
    Size,
    above,
    at_least,
    at_most,
)
from asap_exp.core.errors import UserError, check_choice, check_range
from asap_exp.core.features import FEATURES

AnyStep = TypeVar("AnyStep", bound=Step)


@dataclass
class CalibrationKeys:
    """All keys but the settings of the steps, which `CalibrationConfig` adds under their names."""

    name: str
    steps: list[str]
    sequential: bool
    slices: Annotated[int, at_least(1), at_most(MOST_SLICES)]
    candidates: Annotated[int, at_most(10 * MOST_SLICES)]
    query_features: bool
    adaptive: bool
    logits: bool
    refine: Annotated[int, at_least(0), at_most(MOST_REPEATS)]
    relaxed: bool
    ridge: Annotated[float, above(0), at_most(LARGEST_SETTING)]
    samples: Size
    holdout: Size
    batch_size: Size
    memory_mib: Size
    seed: Seed

    def __post_init__(self) -> None:
        check_choice("calibration.name", self.name, (*STEPS, "sequential"))
        check_steps(self.steps)
        check_range("calibration.candidates", self.candidates, minimum=self.slices)
        for key in self.features:
            if not self.query_features:
                raise UserError(
                    f"calibration.{key}=true needs calibration.query_features=true, got false; set "
                    f"that, or calibration.{key}=false"
                )

    def chosen(self, kind: type[AnyStep]) -> list[AnyStep]:
        """Build the steps of one kind, in their order, each with its settings."""
        settings = with_settings()
        steps = [
            STEPS[name](getattr(self, name) if name in settings else None) for name in self.steps
        ]
        return [step for step in steps if isinstance(step, kind)]

    @property
    def features(self) -> list[str]:
        """The kinds of features that the map uses, by their keys."""
        return [key for key in FEATURES if getattr(self, key)]

    @property
    def relaxes(self) -> bool:
        """True if there are updates and a later step learns how far they go."""
        return self.relaxed and self.refine > 0 and len(self.steps) > 1

    @property
    def fits_layers_apart(self) -> bool:
        """True if the map of each layer is fitted independently of the others."""
        return not self.sequential and not self.chosen(ModelStep)

    def identity(self) -> dict[str, Any]:
        """Return what decides the result: all settings except those of what is not used.

        A key that is new must be left out where it changes nothing, so that the hashes of finished
        runs stay valid.
        """
        unread = [step for step in with_settings() if step not in self.steps]
        unread += [key for key in FEATURES if key != QUERY and not getattr(self, key)]
        unread += [] if self.relaxes else ["relaxed"]
        return {key: value for key, value in asdict(self).items() if key not in unread}


QUERY = "query_features"
FURTHER_FEATURES = [
    key for key in FEATURES if key not in {field.name for field in fields(CalibrationKeys)}
]

if TYPE_CHECKING:

    class CalibrationConfig(CalibrationKeys):
        def __init__(self, **keys: Any) -> None: ...
        def __getattr__(self, step: str) -> Any: ...

else:
    CalibrationConfig = make_dataclass(
        "CalibrationConfig",
        [
            (name, type(step.settings), field(default_factory=step.defaults))
            for name, step in with_settings().items()
        ]
        + [(key, bool, False) for key in FURTHER_FEATURES],
        bases=(CalibrationKeys,),
        namespace={
            "__doc__": "The keys of `calibration`: how the maps of a teacher are fitted.",
            "__module__": __name__,
        },
    )


def check_steps(steps: list[str]) -> None:
    """UserError unless `steps` begins with a start, and each later scope follows the former."""
    for step in steps:
        check_choice("calibration.steps", step, tuple(STEPS))
    starts = names_of(StartStep)
    begins = steps and steps[0] in starts and not set(steps[1:]) & set(starts)
    if not begins or len(set(steps)) < len(steps):
        raise UserError(
            f"calibration.steps={steps} must begin with {' or '.join(starts)}, which the other "
            "steps start from, and name no step twice"
        )
    of_model = [step for step in steps if step in names_of(ModelStep)]
    if of_model != steps[len(steps) - len(of_model) :]:
        raise UserError(
            f"calibration.steps={steps}: {of_model[0]} must come last, since the other steps look "
            "at one layer alone"
        )
