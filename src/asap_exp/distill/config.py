"""The configuration of `distill`."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.steps import LayerStep, StartStep, names_of
from asap_exp.core.config import (
    BudgetConfig,
    LayerConfig,
    LoggerConfig,
    MovedData,
    PathsConfig,
    TaskConfig,
)
from asap_exp.core.config.fields import PATH, Accelerator
from asap_exp.core.errors import UserError


@dataclass
class DistillConfig:
    teacher: Annotated[str | None, PATH]
    calibration: CalibrationConfig
    budget: BudgetConfig
    accelerator: Accelerator
    data: MovedData
    logger: LoggerConfig
    paths: PathsConfig
    layer: LayerConfig = field(default_factory=lambda: LayerConfig("frozen"))
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        if self.budget.asked and not self.calibration.fits_layers_apart:
            *others, last = reversed(names_of(StartStep, LayerStep))
            raise UserError(
                f"calibration={self.calibration.name} fits layers by one another, but a budget "
                f"chooses for each by itself; choose {', '.join(others)} or {last}"
            )

    @property
    def fitted(self) -> CalibrationConfig:
        """Calibration to fit; with a budget, `refine` is the largest one that it allows."""
        if not self.budget.asked:
            return self.calibration
        return replace(self.calibration, refine=max(self.budget.refine, default=0))
