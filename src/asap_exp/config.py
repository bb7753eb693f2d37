"""Schemas of the stages' configurations: which keys exist, their types, which values are allowed.

The values live in `conf/`. A composed configuration becomes one of these dataclasses
(`asap_exp.composing`); `__post_init__` refuses what a type cannot.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asap_exp.errors import UserError, check_choice, check_range

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu")


@dataclass
class TaskConfig:
    name: str | None = None


@dataclass
class RandAugmentConfig:
    num_ops: int
    magnitude: int
    groups: int

    def __post_init__(self) -> None:
        check_range("data.augment.randaugment.num_ops", self.num_ops, minimum=0)
        check_range("data.augment.randaugment.magnitude", self.magnitude, minimum=0, maximum=30)
        check_range("data.augment.randaugment.groups", self.groups, minimum=1)


@dataclass
class AugmentConfig:
    crop_padding: int
    flip: bool
    mixup: float
    cutmix: float
    randaugment: RandAugmentConfig

    def __post_init__(self) -> None:
        check_range("data.augment.crop_padding", self.crop_padding, minimum=0)
        check_range("data.augment.mixup", self.mixup, minimum=0)
        check_range("data.augment.cutmix", self.cutmix, minimum=0)


@dataclass
class DataLocation:
    """Where data sets and decoded copies lie; no part of a run's identity."""

    root: str | None
    cache: str | None


@dataclass
class DataConfig(DataLocation):
    """`val_fraction` null: the validation split that the data set itself has."""

    name: str
    val_fraction: float | None
    split_seed: int
    train_on: str

    def __post_init__(self) -> None:
        if self.val_fraction is not None:
            check_range("data.val_fraction", self.val_fraction, above=0, below=1)
        check_range("data.split_seed", self.split_seed, minimum=0)
        check_choice("data.train_on", self.train_on, ("train", "train+val"))


@dataclass
class ImageDataConfig(DataConfig):
    image_size: int
    augment: AugmentConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("data.image_size", self.image_size, minimum=1)


@dataclass
class TextDataConfig(DataConfig):
    objective: str
    split: str
    layout: str
    max_length: int
    truncation: str
    vocab_size: int
    lowercase: bool
    batch_tokens: int
    length_multiple: int
    mask_share: float
    mask_seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.objective", self.objective, ("classification", "mlm"))
        check_choice("data.split", self.split, ("standard", "pooled"))
        check_choice("data.layout", self.layout, ("texts", "blocks"))
        check_range("data.max_length", self.max_length, minimum=2)
        check_choice("data.truncation", self.truncation, ("head", "ends"))
        check_range("data.vocab_size", self.vocab_size, minimum=320)
        check_range("data.batch_tokens", self.batch_tokens, minimum=self.max_length)
        check_range("data.length_multiple", self.length_multiple, minimum=1)
        check_range("data.mask_share", self.mask_share, minimum=0, below=1)
        check_range("data.mask_seed", self.mask_seed, minimum=0)
        if self.objective == "mlm":
            check_range("data.mask_share", self.mask_share, above=0, below=1)
        elif self.layout == "blocks":
            raise UserError(
                "data.layout=blocks joins texts, so that they have no class of their own; "
                "it needs data.objective=mlm"
            )

    @property
    def masked(self) -> bool:
        """Whether masked tokens are predicted, rather than a class a text."""
        return self.objective == "mlm"


@dataclass
class ModelConfig:
    name: str
    dim: int
    depth: int
    heads: int
    mlp_ratio: float
    qk_norm: bool
    drop_path: float
    dropout: float

    def __post_init__(self) -> None:
        for key in ("dim", "depth", "heads"):
            check_range(f"model.{key}", getattr(self, key), minimum=1)
        check_range("model.mlp_ratio", self.mlp_ratio, above=0)
        check_range("model.drop_path", self.drop_path, minimum=0, below=1)
        check_range("model.dropout", self.dropout, minimum=0, below=1)


@dataclass
class ViTConfig(ModelConfig):
    patch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("model.patch_size", self.patch_size, minimum=1)


@dataclass
class EncoderConfig(ModelConfig):
    positions: str
    pooling: str
    norm: str
    activation: str
    head_softmax: bool
    causal: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("model.positions", self.positions, ("learned", "sinusoidal", "frozen_noise"))
        check_choice("model.pooling", self.pooling, ("mean", "max", "cls", "max_padded"))
        check_choice("model.norm", self.norm, ("pre", "post"))
        check_choice("model.activation", self.activation, ("gelu", "relu"))
        if self.causal:
            raise UserError(
                "model.causal=true is refused. Causal models have no doubly-stochastic plan with "
                "uniform marginals; choose model.causal=false and data.objective=mlm"
            )


@dataclass
class RecipeConfig:
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: float
    final_lr_ratio: float
    label_smoothing: float
    clip_norm: float | None
    ema_decay: float | None
    keep: str

    def __post_init__(self) -> None:
        check_range("recipe.epochs", self.epochs, minimum=1)
        check_range("recipe.batch_size", self.batch_size, minimum=1)
        check_range("recipe.lr", self.lr, above=0)
        check_range("recipe.weight_decay", self.weight_decay, minimum=0)
        check_range("recipe.warmup_epochs", self.warmup_epochs, minimum=0, below=self.epochs)
        check_range("recipe.final_lr_ratio", self.final_lr_ratio, minimum=0, maximum=1)
        check_range("recipe.label_smoothing", self.label_smoothing, minimum=0, below=1)
        if self.clip_norm is not None:
            check_range("recipe.clip_norm", self.clip_norm, above=0)
        if self.ema_decay is not None:
            check_range("recipe.ema_decay", self.ema_decay, above=0, below=1)
        check_choice("recipe.keep", self.keep, ("best", "last"))


@dataclass
class TextRecipeConfig(RecipeConfig):
    lr_drop_epoch: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_drop_epoch is not None:
            check_range("recipe.lr_drop_epoch", self.lr_drop_epoch, minimum=1, below=self.epochs)


@dataclass
class TrainerConfig:
    accelerator: str
    precision: str
    compile: bool | None
    cpu_threads: int | None
    log_every_n_steps: int
    limit_train_batches: int | None
    limit_val_batches: int | None

    def __post_init__(self) -> None:
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        check_choice("trainer.precision", self.precision, PRECISIONS)
        check_range("trainer.log_every_n_steps", self.log_every_n_steps, minimum=1)
        for key in ("cpu_threads", "limit_train_batches", "limit_val_batches"):
            if getattr(self, key) is not None:
                check_range(f"trainer.{key}", getattr(self, key), minimum=1)


@dataclass
class CallbacksConfig:
    progress_bar: bool
    val_every_n_epochs: int
    diagnostic_samples: int

    def __post_init__(self) -> None:
        check_range("callbacks.val_every_n_epochs", self.val_every_n_epochs, minimum=1)
        check_range("callbacks.diagnostic_samples", self.diagnostic_samples, minimum=0)


@dataclass
class LoggerConfig:
    wandb: bool
    project: str
    entity: str | None
    tags: list[str]


@dataclass
class PathsConfig:
    results: str

    @property
    def runs(self) -> Path:
        return Path(self.results) / "runs"


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
    seed: int
    resume: str
    init_from: str | None = None

    @property
    def masked_tokens(self) -> bool:
        """Whether it is a masked language model, rather than a classifier."""
        return False

    def __post_init__(self) -> None:
        check_range("seed", self.seed, minimum=0, maximum=2**32 - 1)
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


@dataclass
class TextTrainConfig(TrainConfig):
    data: TextDataConfig
    model: EncoderConfig
    recipe: TextRecipeConfig

    @property
    def masked_tokens(self) -> bool:
        return self.data.masked


TRAIN_SCHEMAS: dict[str, type[TrainConfig]] = {"vit": ImageTrainConfig, "encoder": TextTrainConfig}
"""By `model.name`: each kind of model has keys of its own for itself and for its data."""


@dataclass
class LayerConfig:
    which: str
    index: int | None = None

    def __post_init__(self) -> None:
        check_choice("layer.which", self.which, ("frozen", "all", "first", "last", "index"))
        if self.which == "index" and self.index is None:
            raise UserError("layer.index is missing; give one, for example layer.index=3")
        if self.which != "index" and self.index is not None:
            raise UserError(
                f"layer.index={self.index} is read with +layer=index alone, not with {self.which}"
            )
        if self.index is not None:
            check_range("layer.index", self.index, minimum=0)


@dataclass
class CalibrationConfig:
    name: str
    slices: int
    query_features: bool
    refine: int
    ridge: float
    samples: int
    holdout: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        check_choice("calibration.name", self.name, ("ridge",))
        check_range("calibration.slices", self.slices, minimum=1)
        check_range("calibration.refine", self.refine, minimum=0)
        check_range("calibration.ridge", self.ridge, above=0)
        check_range("calibration.samples", self.samples, minimum=1)
        check_range("calibration.holdout", self.holdout, minimum=1)
        check_range("calibration.batch_size", self.batch_size, minimum=1)
        check_range("calibration.seed", self.seed, minimum=0)


@dataclass
class DistillConfig:
    teacher: str | None
    calibration: CalibrationConfig
    accelerator: str
    data: DataLocation
    logger: LoggerConfig
    paths: PathsConfig
    layer: LayerConfig = field(default_factory=lambda: LayerConfig("frozen"))
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        check_choice("accelerator", self.accelerator, ACCELERATORS)


@dataclass
class LatencyConfig:
    batch_size: int
    rounds: int
    cuda_graph: bool

    def __post_init__(self) -> None:
        check_range("latency.batch_size", self.batch_size, minimum=1)
        check_range("latency.rounds", self.rounds, minimum=3)


@dataclass
class EvaluateConfig:
    teacher: str | None
    artifact: str | None
    batch_size: int
    max_test_rows: int | None
    truncations: list[int]
    fidelity_samples: int
    latency: LatencyConfig
    accelerator: str
    data: DataLocation
    logger: LoggerConfig
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        check_choice("accelerator", self.accelerator, ACCELERATORS)
        check_range("batch_size", self.batch_size, minimum=1)
        if self.max_test_rows is not None:
            check_range("max_test_rows", self.max_test_rows, minimum=1)
        check_range("fidelity_samples", self.fidelity_samples, minimum=1)
        for num_iters in self.truncations:
            check_range("truncations", num_iters, minimum=1)


@dataclass
class SuiteConfig:
    """What one kind of device is benchmarked on: a row for each `n`, a column for each method."""

    n: list[int]
    tokens: int
    heads: int
    head_dim: int
    dtype: str
    rounds: int
    methods: list[str]

    def check(self, name: str) -> None:
        """Raises UserError where a value is not allowed; `name` is the key of the whole."""
        for key in ("tokens", "heads", "head_dim"):
            check_range(f"{name}.{key}", getattr(self, key), minimum=1)
        check_range(f"{name}.rounds", self.rounds, minimum=3)
        check_choice(f"{name}.dtype", self.dtype, ("bfloat16", "float16", "float32"))
        for key in ("n", "methods"):
            given = getattr(self, key)
            if not given or len(set(given)) < len(given):
                raise UserError(f"{name}.{key}={given} must name at least one, and none twice")
        for n in self.n:
            check_range(f"{name}.n", n, minimum=1)
            if self.tokens % (self.heads * n):
                raise UserError(
                    f"{name}.tokens={self.tokens} must be a multiple of {name}.heads x n = "
                    f"{self.heads} x {n}: batch x heads x tokens is the same in every row"
                )


@dataclass
class BenchmarkConfig:
    mode: str
    inputs: str
    backend: str
    cuda_graph: bool
    gpu: SuiteConfig
    cpu: SuiteConfig
    accelerator: str
    seed: int
    teacher: str | None
    data: DataLocation
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("forward", "train"))
        check_choice("inputs", self.inputs, ("random", "recorded"))
        check_choice("backend", self.backend, ("auto", "reference", "triton"))
        check_choice("accelerator", self.accelerator, ACCELERATORS)
        check_range("seed", self.seed, minimum=0, maximum=2**32 - 1)
        self.gpu.check("gpu")
        self.cpu.check("cpu")
        for key, value in (("teacher", self.teacher), ("task", self.task.name)):
            if value is not None and self.inputs != "recorded":
                raise UserError(f"{key}={value} is read with inputs=recorded alone")


@dataclass
class ReportConfig:
    out: str
    run: str | None
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)
