"""Training recipe: epochs, batch, optimiser, schedule, regularisation."""

from dataclasses import dataclass
from typing import Annotated, Any

from asap_exp.core.config.fields import (
    LARGEST_RATE,
    MOST_REPEATS,
    Count,
    Probability,
    Rate,
    above,
    at_least,
    at_most,
    between,
    one_of,
    within,
)
from asap_exp.core.errors import UserError, check_range

# fmt: off
OPTIMIZERS = (
    "adabelief", "adadelta", "adafactor", "adafactorbv", "adafactorbvc", "adagrad", "adam",
    "adamax", "adamc", "adamp", "adamuon", "adamw", "adamwlegacy", "adan", "adanw", "adopt",
    "adoptc", "adoptw", "cadafactor", "cadafactorbv", "cadafactorbvc", "cadamc", "cadamp",
    "cadamw", "cadan", "cadanw", "cadopt", "cadoptc", "cadoptw", "clamb", "clambw", "claprop",
    "clion", "clionc", "cmars", "cnadamc", "cnadamw", "crmsproptf", "csgdc", "csgdp", "csgdw",
    "kron", "kronc", "kronw", "lamb", "lambc", "lambcd", "lambcw", "lambw", "laprop", "lapropc",
    "larc", "lars", "lion", "lionc", "madgrad", "madgradw", "mars", "momentum", "muon", "nadam",
    "nadamc", "nadamlegacy", "nadamuon", "nadamw", "nesterov", "nesterovw", "nlarc", "nlars",
    "nmuon", "novograd", "novogradc", "novogradw", "radabelief", "radam", "radamlegacy", "radamw",
    "rmsprop", "rmsproptf", "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdp", "sgdw",
)
# fmt: on
"""Optimisers of timm, without those that need other packages or second derivatives."""

SCHEDULES = ("cosine", "constant", "multistep", "poly", "rsqrt", "step", "tanh", "wsd")
"""Schedules of the learning rate; all but `cosine` are timm's.

Plateau is left out: Lightning does not save what it needs to resume exactly."""


@dataclass(kw_only=True)
class RecipeConfig:
    epochs: Annotated[int, at_least(1), at_most(MOST_REPEATS)]
    batch_size: Count
    lr: Rate
    weight_decay: Annotated[float, at_least(0), at_most(LARGEST_RATE)]
    warmup_epochs: float
    final_lr_ratio: Annotated[float, within(0, 1)]
    label_smoothing: Probability
    clip_norm: Annotated[float | None, above(0)]
    ema_decay: Annotated[float | None, between(0, 1)]
    keep: Annotated[str, one_of("best", "last")]
    no_decay: Annotated[str, one_of("timm", "vectors")] = "vectors"
    optimizer: Annotated[str, one_of(*OPTIMIZERS)] = "adamw"
    optimizer_options: dict[str, Any] | None = None
    schedule: Annotated[str, one_of(*SCHEDULES)] = "cosine"
    schedule_options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_range(
            "recipe.warmup_epochs",
            self.warmup_epochs,
            minimum=0,
            below=self.epochs,
            bound_by="recipe.epochs",
            fitting=self.epochs // 3,
        )
        if self.schedule == "cosine" and self.schedule_options:
            raise UserError(
                f"recipe.schedule_options={self.schedule_options} is refused: "
                "recipe.schedule=cosine has recipe.warmup_epochs and recipe.final_lr_ratio alone"
            )
        for name in ("step_on_epochs", "updates_per_epoch"):
            # With its own unit of time timm's schedule would not move, or at another pace.
            if name in (self.schedule_options or {}):
                raise UserError(
                    f"recipe.schedule_options.{name} is refused: a schedule changes after every "
                    "update of the run; leave it out"
                )


@dataclass(kw_only=True)
class TextRecipeConfig(RecipeConfig):
    lr_drop_epoch: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_drop_epoch is None:
            return
        check_range(
            "recipe.lr_drop_epoch",
            self.lr_drop_epoch,
            minimum=1,
            below=self.epochs,
            bound_by="recipe.epochs",
            fitting=self.epochs * 2 // 3 or "null",
        )
        if self.schedule != "cosine":
            raise UserError(
                f"recipe.lr_drop_epoch={self.lr_drop_epoch} takes the place of a schedule; set it "
                f"to null for recipe.schedule={self.schedule}"
            )
