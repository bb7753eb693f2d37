"""The configuration of `distill`."""

from dataclasses import dataclass, field, replace

from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.steps import LayerStep, StartStep, names_of
from asap_exp.core.config import (
    ACCELERATORS,
    PATH,
    BudgetConfig,
    DataLocation,
    LayerConfig,
    LoggerConfig,
    PathsConfig,
    TaskConfig,
)
from asap_exp.core.errors import UserError, check_choice


@dataclass
class DistillConfig:
    teacher: str | None = field(metadata=PATH)
    calibration: CalibrationConfig
    budget: BudgetConfig
    accelerator: str
    data: DataLocation
    logger: LoggerConfig
    paths: PathsConfig
    layer: LayerConfig = field(default_factory=lambda: LayerConfig("frozen"))
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        check_choice("accelerator", self.accelerator, ACCELERATORS)
        if self.budget.asked and not self.calibration.fits_layers_apart:
            *others, last = reversed(names_of(StartStep, LayerStep))
            raise UserError(
                f"calibration={self.calibration.name} fits layers by one another, but a budget "
                f"chooses for each by itself; choose {', '.join(others)} or {last}"
            )

    @property
    def fitted(self) -> CalibrationConfig:
        """The calibration; with a budget, which says what maps may refine, the most of that."""
        if not self.budget.asked:
            return self.calibration
        return replace(self.calibration, refine=max(self.budget.refine, default=0))
