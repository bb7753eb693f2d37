"""The configuration of `distill`."""

from dataclasses import dataclass, field, make_dataclass, replace
from typing import Annotated

from asap_exp.calibration.config import CalibrationConfig, calibration_schema
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
from asap_exp.core.config.shared import ONE_DEVICE
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
    check: bool = False

    otherwise = ONE_DEVICE

    def __post_init__(self) -> None:
        if self.budget.asked and not self.calibration.fits:
            raise UserError(
                f"calibration={self.calibration.name} fits nothing, and a budget chooses among "
                "fitted maps and others; choose another calibration, and give the sizes of subsets "
                "as budget.coarse_tokens=[16,64]"
            )
        if self.budget.asked and not self.calibration.fits_layers_apart:
            *others, last = reversed(names_of(StartStep, LayerStep))
            raise UserError(
                f"calibration={self.calibration.name} fits layers by one another, but a budget "
                f"chooses for each by itself; choose {', '.join(others)} or {last}"
            )

    @classmethod
    def current(cls) -> type["DistillConfig"]:
        """Return this schema with the settings of the calibration steps that are known by now."""
        calibration = calibration_schema()
        if calibration is CalibrationConfig:
            return cls
        return make_dataclass(
            cls.__name__,
            [("calibration", calibration)],
            bases=(cls,),
            namespace={"__doc__": cls.__doc__},
        )

    @property
    def fitted(self) -> CalibrationConfig:
        """Calibration to fit; with a budget, `refine` is the largest one that it allows."""
        if not self.budget.asked:
            return self.calibration
        return replace(self.calibration, refine=max(self.budget.refine, default=0))
