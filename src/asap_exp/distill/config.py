"""The configuration of `distill`."""

from dataclasses import dataclass, field, make_dataclass, replace
from typing import Annotated

from asap_exp.calibration.config import ONE_PASS, CalibrationConfig, calibration_schema
from asap_exp.calibration.steps import LayerStep, StartStep, Step, names_of
from asap_exp.core.config import (
    BudgetConfig,
    LayerConfig,
    LoggerConfig,
    MovedData,
    PathsConfig,
    TaskConfig,
)
from asap_exp.core.config.fields import PATH, Accelerator, at_least
from asap_exp.core.config.shared import SEVERAL_DEVICES
from asap_exp.core.errors import UserError
from asap_exp.core.ranks import Devices


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

    devices: Annotated[int, at_least(1)] = 1
    num_nodes: Annotated[int, at_least(1)] = 1

    otherwise = SEVERAL_DEVICES

    def __post_init__(self) -> None:
        if self.together.world > 1:
            self._check_shared()
        coarse = self.calibration.coarse
        if coarse.tokens is None and not self.budget.coarse_tokens and coarse.chosen:
            key = coarse.chosen[0]
            raise UserError(
                f"calibration.coarse.{key}={getattr(coarse, key)} has no effect without a size of "
                "the subset; give calibration.coarse.tokens=16, for example, or leave "
                f"{key} out"
            )
        if self.budget.asked and not self.calibration.fits:
            raise UserError(
                f"calibration={self.calibration.name} fits nothing, and a budget chooses among "
                "fitted maps and others; choose another calibration, and give the sizes of subsets "
                "as budget.coarse_tokens=[16,64]"
            )
        if self.budget.asked and self.calibration.imitates:
            raise UserError(
                f"calibration={self.calibration.name} fits one attention to a "
                f"{self.calibration.teacher} teacher, and a budget chooses among those that can "
                "take the place of Sinkhorn; choose another calibration, or no budget"
            )
        if self.budget.asked and self.calibration.form == ONE_PASS and max(self.budget.refine):
            raise UserError(
                f"budget.refine={list(self.budget.refine)} has updates, which a map of "
                f"calibration.form={ONE_PASS} does not take; set budget.refine=[0], or "
                "calibration.form=two_sided"
            )
        if self.budget.asked and not self.calibration.fits_layers_apart:
            *others, last = reversed(names_of(StartStep, LayerStep))
            raise UserError(
                f"calibration={self.calibration.name} fits layers by one another, but a budget "
                f"chooses for each by itself; choose {', '.join(others)} or {last}"
            )

    def _check_shared(self) -> None:
        """Raise UserError if several devices cannot share the work."""
        devices = f"{self.together.world} devices were asked for, but "
        alone = "; set devices=1 and num_nodes=1"
        if self.budget.asked:
            raise UserError(f"{devices}a budget times its choices on one{alone}")
        if not self.calibration.fits:
            name = self.calibration.name
            raise UserError(
                f"{devices}calibration={name} fits nothing that they could share{alone}"
            )
        for step in self.calibration.chosen(Step):
            if not step.shares_batches:
                raise UserError(
                    f"{devices}the calibration step {step.name} fits on one{alone}. A step of "
                    "your own that adds up its gradients over the ranks says so with "
                    "shares_batches = True"
                )

    @property
    def together(self) -> Devices:
        """Devices that compile together."""
        return Devices(self.accelerator, self.devices, self.num_nodes)

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
