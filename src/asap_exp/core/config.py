"""Schemas of the stages' configurations: which keys exist, their types, which values are allowed.

The values live in `conf/`. A composed configuration becomes one of these dataclasses
(`asap_exp.core.composing`); `__post_init__` refuses what a type cannot.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asap_exp.core.errors import UserError, check_choice, check_distinct, check_name, check_range

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu")

MOST_THREADS = 1024
"""PyTorch asks for as many as it is told to, and dies where there are none left."""
MOST_WIDTH = 10**6
MOST_LAYERS = 10**4
MOST_REPEATS = 10**6
"""Of epochs and rounds: more have no end."""
MOST_UPDATES = 10**7
MOST_SLICES = 10**5
LARGEST_RATE = 1e30
"""Of learning rates and decays; an optimiser multiplies them in single precision."""
LARGEST_SETTING = 1e9
"""Of what a map is fitted with, its temperature and its penalty: more leaves nothing to fit."""


PATH = {"path": True}
"""Of a field that holds a path: `asap_exp.core.composing` puts the home directory in place of ~."""


def check_at_most(prefix: str, config: object, **most: float) -> None:
    """Raises UserError where a value of `config` is larger than anything of use can be."""
    for key, bound in most.items():
        check_range(f"{prefix}.{key}", getattr(config, key), maximum=bound)


@dataclass
class TaskConfig:
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("task.name", self.name)


@dataclass
class RandAugmentConfig:
    num_ops: int
    magnitude: int
    groups: int

    def __post_init__(self) -> None:
        check_range("data.augment.randaugment.num_ops", self.num_ops, minimum=0)
        check_range("data.augment.randaugment.magnitude", self.magnitude, minimum=0, maximum=30)
        check_range("data.augment.randaugment.groups", self.groups, minimum=1)
        check_at_most("data.augment.randaugment", self, num_ops=100, groups=2**16)


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

    root: str | None = field(metadata=PATH)
    cache: str | None = field(metadata=PATH)


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
        check_at_most("data", self, split_seed=2**32 - 1)
        check_choice("data.train_on", self.train_on, ("train", "train+val"))


@dataclass
class ImageDataConfig(DataConfig):
    image_size: int
    augment: AugmentConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("data.image_size", self.image_size, minimum=1)
        check_at_most("data", self, image_size=4096)
        check_range(
            "data.augment.crop_padding",
            self.augment.crop_padding,
            maximum=self.image_size,
            bound_by="data.image_size",
        )


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
        check_at_most(
            "data",
            self,
            max_length=2**16,
            vocab_size=2**20,
            batch_tokens=2**31 - 1,
            length_multiple=2**16,
            mask_seed=2**32 - 1,
        )
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
        check_range("model.dim", self.dim, maximum=MOST_WIDTH)
        check_range("model.depth", self.depth, maximum=MOST_LAYERS)
        check_range("model.mlp_ratio", self.mlp_ratio, maximum=1000)
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
        check_range("recipe.epochs", self.epochs, maximum=MOST_REPEATS)
        check_range("recipe.lr", self.lr, maximum=LARGEST_RATE)
        check_range("recipe.weight_decay", self.weight_decay, maximum=LARGEST_RATE)
        check_range(
            "recipe.warmup_epochs",
            self.warmup_epochs,
            minimum=0,
            below=self.epochs,
            bound_by="recipe.epochs",
        )
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
            check_range(
                "recipe.lr_drop_epoch",
                self.lr_drop_epoch,
                minimum=1,
                below=self.epochs,
                bound_by="recipe.epochs",
            )


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
        if self.cpu_threads is not None:
            check_range("trainer.cpu_threads", self.cpu_threads, maximum=MOST_THREADS)


@dataclass
class CallbacksConfig:
    progress_bar: bool
    val_every_n_epochs: int
    diagnostic_samples: int
    checkpoint_seconds: float = 60.0  # in the files of runs from before there was this key

    def __post_init__(self) -> None:
        check_range("callbacks.checkpoint_seconds", self.checkpoint_seconds, minimum=0)
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
    results: str = field(metadata=PATH)

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
    resume: str = field(metadata=PATH)
    init_from: str | None = field(default=None, metadata=PATH)

    @property
    def masked_tokens(self) -> bool:
        """Whether it is a masked language model, rather than a classifier."""
        return False

    def __post_init__(self) -> None:
        check_name("task.name", self.task.name)
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
class LatencyConfig:
    batch_size: int
    rounds: int
    cuda_graph: bool

    def check(self, name: str) -> None:
        """Raises UserError where a value is not allowed; `name` is the key of the whole."""
        check_range(f"{name}.batch_size", self.batch_size, minimum=1)
        check_range(f"{name}.rounds", self.rounds, minimum=3)
        check_range(f"{name}.rounds", self.rounds, maximum=MOST_REPEATS)

    def check_device(self, name: str, kind: str) -> None:
        """Raises UserError where a device of this kind ("cuda" or "cpu") cannot be timed so."""
        if self.cuda_graph and kind != "cuda":
            raise UserError(f"{name}.cuda_graph=true needs a GPU; set {name}.cuda_graph=false")


def check_counts(name: str, counts: list[int], *, minimum: int) -> None:
    for count in counts:
        check_range(name, count, minimum=minimum)
        check_range(name, count, maximum=MOST_REPEATS)
    check_distinct(name, counts)


def check_truncations(config: "BudgetConfig | EvaluateConfig", prefix: str) -> None:
    """Raises UserError where a number of updates or the relaxation is not allowed."""
    for key in ("truncations", "relaxed_truncations"):
        check_counts(f"{prefix}{key}", getattr(config, key), minimum=1)
    check_range(f"{prefix}relaxation", config.relaxation, above=0, below=2)


@dataclass
class BudgetConfig:
    """What a compiled model may cost; one of the first two is set, or neither."""

    accuracy_drop: float | None
    latency_ratio: float | None
    slices: list[int]
    refine: list[int]
    truncations: list[int]
    relaxed_truncations: list[int]
    relaxation: float
    latency: LatencyConfig

    def __post_init__(self) -> None:
        if self.accuracy_drop is not None:
            check_range("budget.accuracy_drop", self.accuracy_drop, minimum=0, maximum=100)
        if self.latency_ratio is not None:
            check_range("budget.latency_ratio", self.latency_ratio, above=0)
            check_range("budget.latency_ratio", self.latency_ratio, maximum=LARGEST_SETTING)
        if None not in (self.accuracy_drop, self.latency_ratio):
            raise UserError(
                f"budget.accuracy_drop={self.accuracy_drop} and "
                f"budget.latency_ratio={self.latency_ratio} are two budgets; give one of them"
            )
        for key, minimum in (("slices", 1), ("refine", 0)):
            check_counts(f"budget.{key}", getattr(self, key), minimum=minimum)
        check_truncations(self, "budget.")
        self.latency.check("budget.latency")

    @property
    def asked(self) -> bool:
        return self.accuracy_drop is not None or self.latency_ratio is not None


@dataclass
class CorruptionConfig:
    name: str | None
    severity: int

    def __post_init__(self) -> None:
        check_choice("corruption.name", self.name, (None, "noise", "blur", "contrast"))
        check_range("corruption.severity", self.severity, minimum=1, maximum=5)


@dataclass
class EvaluateConfig:
    teacher: str | None = field(metadata=PATH)
    artifact: str | None = field(metadata=PATH)
    maps: str
    batch_size: int
    max_test_rows: int | None
    corruption: CorruptionConfig
    truncations: list[int]
    relaxed_truncations: list[int]
    relaxation: float
    fidelity_samples: int
    latency: LatencyConfig
    accelerator: str
    data: DataLocation
    logger: LoggerConfig
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        check_choice("accelerator", self.accelerator, ACCELERATORS)
        check_choice("maps", self.maps, ("one", "all"))
        self.latency.check("latency")
        check_range("batch_size", self.batch_size, minimum=1)
        if self.max_test_rows is not None:
            check_range("max_test_rows", self.max_test_rows, minimum=1)
        check_range("fidelity_samples", self.fidelity_samples, minimum=1)
        check_truncations(self, "")


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
        check_range(f"{name}.rounds", self.rounds, maximum=MOST_REPEATS)
        check_choice(f"{name}.dtype", self.dtype, ("bfloat16", "float16", "float32"))
        for key in ("n", "methods"):
            given = getattr(self, key)
            if not given:
                raise UserError(f"{name}.{key}={given} must name at least one")
            check_distinct(f"{name}.{key}", given)
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
    teacher: str | None = field(metadata=PATH)
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
    out: str = field(metadata=PATH)
    run: str | None = field(metadata=PATH)
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)
