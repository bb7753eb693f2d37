"""The keys of `calibration`: how maps are fitted. Every registered step adds its settings."""

from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from asap_exp.calibration.steps import (
    STEPS,
    ImitationStep,
    ModelStep,
    StartStep,
    Step,
    names_of,
    with_settings,
)
from asap_exp.core import plugins
from asap_exp.core.config.fields import (
    COARSE_CHOICES,
    COARSE_GRIDS,
    COARSE_WEIGHTS,
    LARGEST_SETTING,
    MOST_REPEATS,
    MOST_SLICES,
    Seed,
    Size,
    above,
    at_least,
    at_most,
    one_of,
)
from asap_exp.core.errors import UserError, check_choice, check_range
from asap_exp.core.features import FEATURES

AnyStep = TypeVar("AnyStep", bound=Step)


MIB = 2**20
HOLDOUT, LARGEST_SHARE = 256, 4
"""Samples to check on where none are given; of fewer samples than four times that, a quarter."""
COARSE = "coarse"
ONE_PASS = "one_pass"
FORMS = ("two_sided", ONE_PASS)


@dataclass
class CoarseKeys:
    """Which tokens a coarse dual is made of; without `tokens` there is none.

    `num_iters` is the number T of updates on them, that of the teacher if None.
    """

    tokens: Annotated[int | None, at_least(1), at_most(MOST_REPEATS)] = None
    choice: Annotated[str, one_of(*COARSE_CHOICES)] = "sequence"
    weights: Annotated[str, one_of(*COARSE_WEIGHTS)] = "equal"
    num_iters: Annotated[int | None, at_least(1), at_most(MOST_REPEATS)] = None
    seed: Seed = 0
    grid_width: Annotated[int, at_least(0), at_most(MOST_REPEATS)] = 0

    @property
    def chosen(self) -> list[str]:
        """Settings of the tokens, other than the seed, that are not at their defaults."""
        keys = ("choice", "weights", "num_iters", "grid_width")
        return [key for key in keys if getattr(self, key) != getattr(CoarseKeys, key)]

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result."""
        read_by = {"seed": ("random",), "grid_width": COARSE_GRIDS}
        unread = [key for key, choices in read_by.items() if self.choice not in choices]
        return {key: value for key, value in asdict(self).items() if key not in unread}


@dataclass
class CalibrationKeys:
    """All keys but the settings of the steps, which `CalibrationConfig` adds under their names."""

    name: str
    steps: list[str]
    sequential: bool
    slices: Annotated[int, at_least(0), at_most(MOST_SLICES)]
    candidates: Annotated[int, at_most(10 * MOST_SLICES)]
    query_features: bool
    adaptive: bool
    logits: bool
    refine: Annotated[int, at_least(0), at_most(MOST_REPEATS)]
    relaxed: bool
    ridge: Annotated[float, above(0), at_most(LARGEST_SETTING)]
    samples: Size
    holdout: Annotated[int | None, at_least(1), at_most(2**63 - 1)]
    batch_size: Size
    memory_mib: Size
    seed: Seed
    coarse: CoarseKeys = field(default_factory=CoarseKeys)
    form: Annotated[str, one_of(*FORMS)] = "two_sided"

    def __post_init__(self) -> None:
        check_choice("calibration.name", self.name, (*STEPS, "sequential", COARSE))
        if self.coarse.grid_width and self.coarse.choice not in COARSE_GRIDS:
            raise UserError(
                f"calibration.coarse.grid_width={self.coarse.grid_width} is read only with "
                "calibration.coarse.choice=grid or staggered, not with "
                f"{self.coarse.choice}; set one, or leave grid_width out"
            )
        if not self.fits:
            check_without_fit(self)
            return
        check_steps(self.steps)
        if self.imitates:
            check_imitation(self)
            return
        check_range(
            "calibration.candidates",
            self.candidates,
            minimum=self.slices,
            bound_by="calibration.slices",
            fitting=self.slices,
        )
        check_form(self)
        for key in self.features:
            if not self.query_features:
                on, off = (
                    (f"{key}.tokens={self.coarse.tokens}", f"{key}.tokens=null")
                    if key == COARSE
                    else (f"{key}=true", f"{key}=false")
                )
                raise UserError(
                    f"calibration.{on} needs calibration.query_features=true, got false; set that, "
                    f"or calibration.{off}"
                )

    def chosen(self, kind: type[AnyStep]) -> list[AnyStep]:
        """Build the steps of one kind, in their order, each with its settings."""
        settings = with_settings()
        steps = [
            STEPS[name](getattr(self, name) if name in settings else None) for name in self.steps
        ]
        return [step for step in steps if isinstance(step, kind)]

    @property
    def fits(self) -> bool:
        """False if the layers become coarse and nothing is fitted."""
        return bool(self.steps) or self.coarse.tokens is None

    @property
    def imitates(self) -> bool:
        """True if the layers become another attention than ASAP, fitted to the teacher's plans."""
        return bool(self.chosen(ImitationStep))

    @property
    def teacher(self) -> str:
        """Attention of the teachers that it can be fitted to."""
        return next((step.teacher for step in self.chosen(Step)), Step.teacher)

    @property
    def room(self) -> int:
        """`memory_mib` in bytes."""
        return self.memory_mib * MIB

    def held_out_of(self, samples: int) -> int:
        """Return the number of samples to check on, of this many."""
        return self.holdout or max(min(HOLDOUT, samples // LARGEST_SHARE), 1)

    def uses(self, feature: str) -> bool:
        """Return True if the map has the features of this key."""
        return bool(self.coarse.tokens if feature == COARSE else getattr(self, feature))

    @property
    def features(self) -> list[str]:
        """The kinds of features that the map uses, by their keys."""
        return [key for key in FEATURES if self.uses(key)]

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
        if not self.fits:
            return recipe_without_fit(self.coarse, self.form)
        unread = [step for step in with_settings() if step not in self.steps]
        unread += [key for key in FEATURES if key != QUERY and not self.uses(key)]
        unread += [] if self.relaxes else ["relaxed"]
        unread += [] if self.slices else ["candidates"]
        unread += ["ridge"] if self.imitates else []
        unread += [] if self.form == ONE_PASS else ["form"]
        found = asdict(self) | {COARSE: self.coarse.identity(), "holdout": self.holdout or HOLDOUT}
        return {key: value for key, value in found.items() if key not in unread}


def recipe_without_fit(coarse: CoarseKeys, form: str) -> dict[str, Any]:
    """Return `CalibrationConfig.identity` of coarse duals that nothing is fitted to."""
    return {
        "name": COARSE,
        "steps": [],
        "slices": 0,
        "query_features": False,
        "refine": 0,
        "coarse": coarse.identity(),
        "form": form,
    }


QUERY = "query_features"
FURTHER_FEATURES = [
    key for key in FEATURES if key not in {field.name for field in fields(CalibrationKeys)}
]


@cache
def _with_settings(steps: tuple[type[Step], ...]) -> type[CalibrationKeys]:
    settings = [(s.name, type(s.settings), field(default_factory=s.defaults)) for s in steps]
    return make_dataclass(
        "CalibrationConfig",
        [*settings, *((key, bool, False) for key in FURTHER_FEATURES)],
        bases=(CalibrationKeys,),
        namespace={
            "__doc__": "The keys of `calibration`: how the maps of a teacher are fitted.",
            "__module__": __name__,
        },
    )


def calibration_schema() -> type["CalibrationConfig"]:
    """Return the class of the keys of `calibration`, with the settings of every step known by now.

    Installed packages with steps are imported; other steps must have been registered.
    """
    for name in plugins.installed(plugins.KINDS["calibration"]):
        if name not in STEPS:
            plugins.load("calibration", name)
    return cast(type[CalibrationConfig], _with_settings(tuple(with_settings().values())))


if TYPE_CHECKING:

    class CalibrationConfig(CalibrationKeys):
        def __init__(self, **keys: Any) -> None: ...
        def __getattr__(self, step: str) -> Any: ...

else:
    CalibrationConfig = _with_settings(tuple(with_settings().values()))


WITHOUT_MAP = {
    "slices": 0,
    "query_features": False,
    "adaptive": False,
    "logits": False,
    "refine": 0,
    "relaxed": False,
    "sequential": False,
}
"""What the keys of a map must be where none is fitted."""


def check_without_fit(config: CalibrationKeys) -> None:
    """Raise UserError if a key asks for something that needs a fit."""
    check_without_map(
        config, "fits nothing", "to fit a map with the coarse dual among its features"
    )


def check_imitation(config: CalibrationKeys) -> None:
    """Raise UserError for a key of maps where another attention is fitted."""
    check_without_map(config, "fits another attention", "to fit a map to a Sinkhorn teacher")
    for key, given, none in (
        ("coarse.tokens", config.coarse.tokens, None),
        ("form", config.form, "two_sided"),
    ):
        if given != none:
            raise UserError(
                f"calibration.{key}={given} is of duals, and calibration.steps={config.steps} fits "
                f"another attention, which has none; leave it out, or use calibration=coarse"
            )


def check_without_map(config: CalibrationKeys, does: str, instead: str) -> None:
    keys = {**WITHOUT_MAP, **dict.fromkeys(FURTHER_FEATURES, False)}
    for key, value in keys.items():
        if (given := getattr(config, key)) != value:
            words, of = str(given).lower(), str(value).lower()
            raise UserError(
                f"calibration.{key}={words} needs a map that is fitted, but "
                f"calibration.steps={config.steps} {does}: set calibration.{key}={of}, or "
                f"calibration.steps=[ridge] {instead}"
            )


def check_form(config: CalibrationKeys) -> None:
    """Raise UserError for a map that has nothing to fit, and for updates in one pass."""
    if config.form == ONE_PASS and config.refine > 0:
        raise UserError(
            f"calibration.refine={config.refine} updates the dual of the queries, and with "
            f"calibration.form={ONE_PASS} a map predicts that of the keys; set "
            "calibration.refine=0, or calibration.form=two_sided"
        )
    if config.slices == 0 and config.adaptive:
        raise UserError(
            "calibration.adaptive=true has no effect with calibration.slices=0: these features are "
            "of slices; set calibration.adaptive=false, or slices"
        )
    if config.slices == 0 and not config.features:
        raise UserError(
            "calibration.slices=0 leaves nothing to fit; set slices, or features such as "
            "calibration.query_features=true"
        )


def check_steps(steps: list[str]) -> None:
    """Raise UserError unless a start comes first, and steps on the whole model come last."""
    for step in steps:
        check_choice("calibration.steps", step, tuple(STEPS))
    if (own := set(steps) & set(names_of(ImitationStep))) and len(steps) > 1:
        raise UserError(
            f"calibration.steps={steps}: {min(own)} is a calibration by itself; take it alone, or "
            "leave it out"
        )
    if own:
        return
    starts = names_of(StartStep)
    begins = steps and steps[0] in starts and not set(steps[1:]) & set(starts)
    if not begins or len(set(steps)) < len(steps):
        raise UserError(
            f"calibration.steps={steps} must begin with {' or '.join(starts)}, which the other "
            "steps start from, and name no step twice; without any, calibration.coarse.tokens must "
            "be given"
        )
    of_model = [step for step in steps if step in names_of(ModelStep)]
    if of_model != steps[len(steps) - len(of_model) :]:
        raise UserError(
            f"calibration.steps={steps}: {of_model[0]} must come last, since the other steps look "
            "at one layer alone"
        )
