"""The configuration of the stage `train`."""

from dataclasses import dataclass
from typing import Annotated, Any

from asap_exp.core.config.data import DataConfig, ImageDataConfig, TextDataConfig
from asap_exp.core.config.fields import (
    LARGEST_RATE,
    MOST_REPEATS,
    MOST_THREADS,
    PATH,
    PRECISIONS,
    Accelerator,
    Count,
    Probability,
    Rate,
    Seed,
    above,
    at_least,
    at_most,
    between,
    one_of,
    within,
)
from asap_exp.core.config.model import EncoderConfig, ModelConfig, ViTConfig
from asap_exp.core.config.shared import LoggerConfig, PathsConfig, TaskConfig
from asap_exp.core.errors import UserError, check_name, check_range
from asap_exp.core.objectives import CLASSIFICATION, OBJECTIVES, Objective


@dataclass
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

    def __post_init__(self) -> None:
        check_range(
            "recipe.warmup_epochs",
            self.warmup_epochs,
            minimum=0,
            below=self.epochs,
            bound_by="recipe.epochs",
        )


@dataclass
class TextRecipeConfig(RecipeConfig):
    lr_drop_epoch: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_drop_epoch is not None:
            check_range(
                "recipe.lr_drop_epoch",
                self.lr_drop_epoch,
                minimum=1,
                below=self.epochs,
                bound_by="recipe.epochs",
            )


@dataclass
class TrainerConfig:
    accelerator: Accelerator
    precision: Annotated[str, one_of(*PRECISIONS)]
    compile: bool | None
    cpu_threads: Annotated[int | None, at_least(1), at_most(MOST_THREADS)]
    log_every_n_steps: Count
    limit_train_batches: Annotated[int | None, at_least(1)]
    limit_val_batches: Annotated[int | None, at_least(1)]


@dataclass
class CallbacksConfig:
    progress_bar: bool
    val_every_n_epochs: Count
    diagnostic_samples: Annotated[int, at_least(0)]
    # Configurations saved before this key existed lack it.
    checkpoint_seconds: Annotated[float, at_least(0)] = 60.0


@dataclass
class TrainConfig:
    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    attention: dict[str, Any]
    recipe: RecipeConfig
    trainer: TrainerConfig
    callbacks: CallbacksConfig
    logger: LoggerConfig
    paths: PathsConfig
    seed: Seed
    resume: Annotated[str, PATH]
    init_from: Annotated[str | None, PATH] = None
    # The file of the group `debug` that shortened this run.
    debug: str | None = None

    @property
    def objective(self) -> Objective:
        """Objective: what the model predicts."""
        return CLASSIFICATION

    @property
    def lengths_vary(self) -> bool:
        """True if samples differ in their number of tokens."""
        return False

    def __post_init__(self) -> None:
        check_name("task", self.task.name)
        if self.recipe.keep == "best" and self.callbacks.val_every_n_epochs > self.recipe.epochs:
            raise UserError(
                f"callbacks.val_every_n_epochs={self.callbacks.val_every_n_epochs} leaves no "
                f"validation in recipe.epochs={self.recipe.epochs} to choose the best epoch by; "
                "validate more often, or set recipe.keep=last"
            )
        if self.data.train_on == "train+val" and self.recipe.keep == "best":
            raise UserError(
                "data.train_on=train+val leaves no validation rows to choose the best epoch by; "
                "set recipe.keep=last"
            )


@dataclass
class ImageTrainConfig(TrainConfig):
    data: ImageDataConfig
    model: ViTConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        size, patch = self.data.image_size, self.model.patch_size
        if size % patch:
            divisors = [str(n) for n in range(1, size + 1) if size % n == 0]
            raise UserError(
                f"model.patch_size={patch} does not divide data.image_size={size}; "
                f"choose one of {', '.join(divisors)}",
                key="model.patch_size",
                value=patch,
                allowed=divisors,
            )


@dataclass
class TextTrainConfig(TrainConfig):
    data: TextDataConfig
    model: EncoderConfig
    recipe: TextRecipeConfig

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.data.objective]

    @property
    def lengths_vary(self) -> bool:
        return True


TRAIN_SCHEMAS: dict[str, type[TrainConfig]] = {"vit": ImageTrainConfig, "encoder": TextTrainConfig}
"""Schemas by `model.name`; each kind of model has its own keys for model and data."""
