"""The configuration of the stage `train`."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from asap_exp.core.config.data import DataConfig, ImageDataConfig, TextDataConfig
from asap_exp.core.config.fields import PATH, Count, Seed, at_least
from asap_exp.core.config.model import EncoderConfig, ModelConfig, ViTConfig
from asap_exp.core.config.recipe import RecipeConfig, TextRecipeConfig
from asap_exp.core.config.shared import LoggerConfig, PathsConfig, TaskConfig
from asap_exp.core.config.trainer import TrainerConfig
from asap_exp.core.errors import UserError, check_name
from asap_exp.core.objectives import CLASSIFICATION, OBJECTIVES, Objective
from asap_exp.core.targets import check_target

BELOW_TRAINER = {name: f"use trainer.{name}" for name in ("devices", "num_nodes", "strategy")}
"""Keys of several devices that are looked for in the wrong place."""


def listed(numbers: list[int]) -> str:
    """Return numbers in words; of more than eight the smallest."""
    *most, last = map(str, numbers[:8])
    return f"{', '.join(most)} or {last}" if most else last


@dataclass
class EarlyStoppingConfig:
    patience: Annotated[int | None, at_least(0)] = None
    min_delta: Annotated[float, at_least(0)] = 0.0


@dataclass
class CallbacksConfig:
    progress_bar: bool
    val_every_n_epochs: Count
    diagnostic_samples: Annotated[int, at_least(0)]
    # Configurations saved before these keys existed lack them.
    checkpoint_seconds: Annotated[float, at_least(0)] = 60.0
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    plan_images: Annotated[int, at_least(0)] = 20
    extra: list[dict[str, Any]] = field(default_factory=list)


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
    module: dict[str, Any] | None = None
    # The file of the group `debug` that shortened this run.
    debug: str | None = None
    check: bool = False

    otherwise = BELOW_TRAINER

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
        self._check_batch_splits()
        if self.trainer.strategy == "fsdp":
            self._check_sharded()
        for index, callback in enumerate(self.callbacks.extra):
            check_target(f"callbacks.extra[{index}]", callback)
        if self.module is not None:
            check_target("module", self.module)
        if self.data.train_on == "train+val":
            self._check_without_validation()

    def _check_batch_splits(self) -> None:
        batch, world = self.recipe.batch_size, self.trainer.world
        if batch % world:
            near = [n for n in (batch - batch % world, batch + -batch % world) if n]
            divisors = [n for n in range(1, batch + 1) if batch % n == 0]
            raise UserError(
                f"recipe.batch_size={batch} is the batch of all devices together and cannot be "
                f"split evenly over {world}; set recipe.batch_size="
                f"{' or '.join(map(str, near))}, or train on {listed(divisors)} devices "
                "(trainer.devices times trainer.num_nodes)",
                key="recipe.batch_size",
                value=batch,
                allowed=near,
            )

    def _check_sharded(self) -> None:
        refused: list[tuple[str, Any, Any]] = [
            ("recipe.ema_decay", self.recipe.ema_decay, None),
            ("recipe.optimizer", self.recipe.optimizer, "adamw"),
            ("module", self.module and self.module.get("_target_"), None),
        ]
        if self.trainer.precision == "16-mixed":
            refused.append(("trainer.precision", "16-mixed", "bf16-mixed"))
        for key, value, allowed in refused:
            if value != allowed:
                raise UserError(
                    f"{key}={value} does not work with trainer.strategy=fsdp; set {key}="
                    f"{'null' if allowed is None else allowed}, or trainer.strategy=ddp",
                    key=key,
                    value=value,
                    allowed=allowed,
                )

    def _check_without_validation(self) -> None:
        without = "data.train_on=train+val leaves no validation rows"
        if self.recipe.keep == "best":
            raise UserError(f"{without} to choose the best epoch by; set recipe.keep=last")
        if self.callbacks.early_stopping.patience is not None:
            raise UserError(f"{without} to stop by; set callbacks.early_stopping.patience=null")


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
