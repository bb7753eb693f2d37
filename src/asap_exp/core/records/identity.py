"""Identity of a compiled map, `asap.json`: its teacher, its calibration and its layers."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass

from asap_exp.core.features import FEATURES
from asap_exp.core.typed import STRICT, Count, Divergence, Measure, Positive, Sha256, Share, Size

Scalar = str | bool | int | float | None
Options = dict[str, Scalar]
AttentionConfig = dict[str, Scalar | dict[str, Scalar]]
"""Attention as `{name, **options}`."""


@dataclass(config=STRICT, kw_only=True)
class Descent:
    """Settings of a gradient step."""

    updates: Size
    lr: Positive


def kind_of_settings(given: Any) -> str:
    """Return "gradient" for the settings of a gradient step, and "own" for any others."""
    keys = {"updates", "lr"}
    gradient = isinstance(given, Descent) or (isinstance(given, dict) and set(given) == keys)
    return "gradient" if gradient else "own"


StepSettings = Annotated[
    Annotated[Descent, Tag("gradient")] | Annotated[Options, Tag("own")],
    Discriminator(kind_of_settings),
]
"""Settings of a calibration step; those of steps of other packages may have any keys."""

GATHERED = frozenset({"settings", "further_features"})


@dataclass(config=STRICT, kw_only=True)
class CoarseRecipe:
    """Settings of a coarse dual; None for the teacher's number of updates, and where unread."""

    tokens: Size
    choice: str
    weights: str
    num_iters: Size | None = None
    seed: Count | None = None
    grid_width: Count | None = None


OF_A_FIT = ("ridge", "samples", "holdout", "batch_size", "seed")


@dataclass(config=STRICT, kw_only=True)
class CalibrationRecipe:
    """Configuration of a calibration; unused settings are None.

    Without steps nothing was fitted, and the settings of a fit are missing.
    """

    name: str
    slices: Count
    query_features: bool
    refine: Count
    ridge: Positive | None = None
    samples: Size | None = None
    holdout: Size | None = None
    batch_size: Size | None = None
    seed: Count | None = None
    coarse: CoarseRecipe | None = None
    form: str | None = None
    steps: list[str] | None = None
    sequential: bool | None = None
    candidates: Size | None = None
    adaptive: bool | None = None
    logits: bool | None = None
    relaxed: bool | None = None
    memory_mib: Size | None = None
    settings: dict[str, StepSettings] = Field(default_factory=dict)
    """Settings of the steps that have any, by step; in the file each is a key of its own."""
    further_features: list[str] = Field(default_factory=list)
    """Other kinds of features that the map uses; in the file each is a key that is true."""

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("steps", []), list):
            return given
        known = {field.name for field in fields(cls)} - set(GATHERED)
        other = {key: value for key, value in given.items() if key not in known}
        if wrong := GATHERED & other.keys():
            raise ValueError(f"{min(wrong)}: unexpected key")
        steps = given.get("steps") or []
        settings = {key: value for key, value in other.items() if key in steps}
        features = [key for key, value in other.items() if value is True and key in FEATURES]
        rest = {key: x for key, x in given.items() if key not in settings and key not in features}
        return rest | {"settings": settings, "further_features": features}

    @model_validator(mode="after")
    def _of_a_fit_or_without(self) -> "CalibrationRecipe":
        needed = [key for key in OF_A_FIT if key != "ridge" or self.regresses]
        missing = [key for key in needed if getattr(self, key) is None]
        if self.fitted and missing:
            raise ValueError(f"{missing[0]} is missing")
        if not self.fitted and (self.coarse is None or self.form is None):
            raise ValueError("coarse or form is missing, and steps is empty")
        return self

    @property
    def fitted(self) -> bool:
        """False for coarse duals without a fit."""
        return self.steps != []

    @property
    def regresses(self) -> bool:
        """False if a fit was not of a map of slices or features, but of another attention."""
        return bool(self.slices or self.features)

    @model_serializer(mode="wrap")
    def _under_their_names(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = written(self)
        features = dict.fromkeys(found.pop("further_features"), True)
        return found | found.pop("settings") | features

    @property
    def features(self) -> list[str]:
        """The kinds of features that the map uses beside its slices, by their keys."""
        known = ("query_features", "adaptive", "logits", "coarse")
        return [*(key for key in known if getattr(self, key)), *self.further_features]


@dataclass(config=STRICT, kw_only=True)
class CalibrationSet:
    rows: Size
    sha256: Sha256
    task: str | None = None
    data: str | None = None
    split: str | None = None


@dataclass(config=STRICT, kw_only=True)
class TeacherLayer:
    attention: Options
    heads: Size
    head_dim: Size


@dataclass(config=STRICT, kw_only=True)
class BeforeAfter:
    before: Divergence
    after: Divergence


@dataclass(config=STRICT, kw_only=True)
class BudgetLayer:
    became: str
    layer_ms: Positive
    teacher_layer_ms: Positive
    kl_alone: Divergence


@dataclass(config=STRICT, kw_only=True)
class Budget:
    """Requested budget, the choice for each layer, and what the compiled model reached."""

    accuracy_drop: Measure | None
    latency_ratio: Positive | None
    split: str
    rows: Size
    layers: dict[str, BudgetLayer] = Field(min_length=1)
    teacher_accuracy: Share
    accuracy: Share
    kl: Divergence
    teacher_model_ms: Positive
    model_ms: Positive
    seen_in_training: bool = False

    @property
    def chose_asap(self) -> bool:
        """True if some layer became a map of ASAP."""
        return any(layer.became.startswith("ASAP") for layer in self.layers.values())


@dataclass(config=STRICT, kw_only=True)
class Identity:
    """Identity of any compiled map. Fields with a default may be missing from older versions."""

    format: Literal[1, 2]
    teacher_sha256: Sha256
    slices: Count
    query_features: bool
    refine: Count
    dtype: str
    calibration: CalibrationRecipe
    calibration_set: CalibrationSet | None = None
    layers: list[str] = Field(min_length=1)
    tensors_sha256: Sha256
    adaptive: bool | None = None
    logits: bool | None = None
    prediction_kl: dict[str, BeforeAfter] | None = None
    layers_sha256: Sha256 | None = None
    """Hash of the weights of the compiled layers, to which `load_compiled` binds a map."""
    teacher_layers: dict[str, TeacherLayer] | None = None
    column_error: dict[str, Measure] | None = None
    attentions: dict[str, AttentionConfig] | None = None
    budget: Budget | None = None
    fidelity_sha256: Sha256 | None = None
    """Hash of the rows of fidelity.json."""
    teacher_run: str | None = None
    task: str | None = None
    num_iters: Size | None = None
    eps: Positive | None = None
    heads: Size | None = None
    head_dim: Size | None = None

    @model_validator(mode="after")
    def _about_its_layers(self) -> "Identity":
        became = {options.get("name") for options in (self.attentions or {}).values()}
        if self.imitates and "asap" in became:
            raise ValueError("attentions names asap, but calibration has no slices or features")
        of_all = (self.attentions, self.teacher_layers)
        if self.format > 1 and None in of_all:
            raise ValueError("attentions or teacher_layers is missing")
        of_a_fit = (self.calibration_set, *((self.column_error,) if self.format > 1 else ()))
        if self.calibration.fitted and None in of_a_fit:
            raise ValueError("calibration_set or column_error is missing")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers names one twice")
        parts: dict[str, dict[str, Any] | None] = {
            "attentions": self.attentions,
            "column_error": self.column_error,
            "budget.layers": None if self.budget is None else self.budget.layers,
        }
        for key, part in parts.items():
            if part is not None and set(part) != set(self.layers):
                raise ValueError(f"{key} is not about the layers {', '.join(self.layers)}")
        return self

    @property
    def imitates(self) -> bool:
        """True if the layers became another attention, fitted to a softmax teacher's plans."""
        return self.calibration.fitted and not self.calibration.regresses

    @property
    def without_asap(self) -> bool:
        """True if a budget left no layer to ASAP, whatever was fitted to choose from."""
        return self.budget is not None and not self.budget.chose_asap


@dataclass(config=STRICT, kw_only=True)
class RunIdentity(Identity):
    """Identity of a map made by `distill`: it names the run, and one kind of layer.

    A softmax teacher has neither `num_iters` nor `eps`.
    """

    teacher_run: str
    task: str
    heads: Size
    head_dim: Size

    @model_validator(mode="after")
    def _of_its_teacher(self) -> "RunIdentity":
        if not self.imitates and None in (self.num_iters, self.eps):
            raise ValueError("num_iters or eps is missing")
        return self
