"""The configuration of the stage `distill`."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from asap_exp.core.config.calibration import CalibrationConfig
from asap_exp.core.config.fields import (
    LARGEST_SETTING,
    MOST_REPEATS,
    PATH,
    Accelerator,
    Counts,
    Distinct,
    Relaxation,
    above,
    at_least,
    at_most,
    one_of,
    within,
)
from asap_exp.core.config.shared import (
    DataLocation,
    LatencyConfig,
    LoggerConfig,
    PathsConfig,
    TaskConfig,
)
from asap_exp.core.errors import UserError


@dataclass
class LayerConfig:
    which: Annotated[str, one_of("frozen", "all", "first", "last", "index")]
    index: Annotated[int | None, at_least(0)] = None

    def __post_init__(self) -> None:
        if self.which == "index" and self.index is None:
            raise UserError("layer.index is missing; give one, for example layer.index=3")
        if self.which != "index" and self.index is not None:
            raise UserError(
                f"layer.index={self.index} is read only with +layer=index, not with {self.which}"
            )


@dataclass
class BudgetConfig:
    """What a compiled model may cost; one of the first two is set, or neither."""

    accuracy_drop: Annotated[float | None, within(0, 100)]
    latency_ratio: Annotated[float | None, above(0), at_most(LARGEST_SETTING)]
    slices: Counts
    refine: Annotated[list[int], at_least(0), at_most(MOST_REPEATS), Distinct()]
    truncations: Counts
    relaxed_truncations: Counts
    relaxation: Relaxation
    latency: LatencyConfig

    def __post_init__(self) -> None:
        if None not in (self.accuracy_drop, self.latency_ratio):
            raise UserError(
                f"budget.accuracy_drop={self.accuracy_drop} and "
                f"budget.latency_ratio={self.latency_ratio} are two budgets; give one of them"
            )

    @property
    def asked(self) -> bool:
        return self.accuracy_drop is not None or self.latency_ratio is not None


@dataclass
class DistillConfig:
    teacher: Annotated[str | None, PATH]
    calibration: CalibrationConfig
    budget: BudgetConfig
    accelerator: Accelerator
    data: DataLocation
    logger: LoggerConfig
    paths: PathsConfig
    layer: LayerConfig = field(default_factory=lambda: LayerConfig("frozen"))
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        if self.budget.asked and (
            self.calibration.sequential or "end_to_end" in self.calibration.steps
        ):
            raise UserError(
                f"calibration={self.calibration.name} fits layers by one another, but a budget "
                "chooses for each by itself; choose learned_slices, kl or ridge"
            )

    @property
    def fitted(self) -> CalibrationConfig:
        """The calibration; with a budget, which says what maps may refine, the most of that."""
        if not self.budget.asked:
            return self.calibration
        return replace(self.calibration, refine=max(self.budget.refine, default=0))
