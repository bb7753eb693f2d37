"""Views of the configurations and data in records: the parts that tables and figures show."""

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from asap_exp.core.typed import VIEW, Count, Name, Share, Size

RELAXATION = 1.6
"""Relaxation in records that do not state it: the value of conf/evaluate.yaml."""


@dataclass(config=VIEW, kw_only=True)
class TaskSettings:
    name: str


@dataclass(config=VIEW, kw_only=True)
class DataSettings:
    """Settings of the data; only images have `image_size`, only texts `max_length`."""

    name: Name
    image_size: Size | None = None
    max_length: Size | None = None


@dataclass(config=VIEW, kw_only=True)
class ModelSettings:
    """Settings of the model; only image models have `patch_size`."""

    qk_norm: bool
    patch_size: Size | None = None


@dataclass(config=VIEW, kw_only=True)
class AttentionSettings:
    """Settings of the attention; only Sinkformers have `half_steps`."""

    name: str
    half_steps: Size | None = None

    @model_validator(mode="after")
    def _counts_its_updates(self) -> "AttentionSettings":
        if (self.name == "sinkformer") != (self.half_steps is not None):
            raise ValueError("half_steps is an option of sinkformer, which needs it")
        return self


@dataclass(config=VIEW, kw_only=True)
class RecipeSettings:
    keep: str


@dataclass(config=VIEW, kw_only=True)
class TrainerSettings:
    precision: str
    limit_train_batches: Size | Share | None = None
    fast_dev_run: bool | Count | None = None
    overfit_batches: Size | Share | None = None
    max_steps: Size | None = None
    max_time: str | None = None

    @property
    def shortened(self) -> str:
        """What shortened the training, in words; empty if nothing did."""
        if (limit := self.limit_train_batches) is not None:
            share = f"{limit:.0%} of the" if isinstance(limit, float) else str(limit)
            return f"{share} batches per epoch only"
        names = ("fast_dev_run", "overfit_batches", "max_steps", "max_time")
        return ", ".join(f"trainer.{n}={x}" for n in names if (x := getattr(self, n)))


@dataclass(config=VIEW, kw_only=True)
class TrainSettings:
    task: TaskSettings
    data: DataSettings
    model: ModelSettings
    attention: AttentionSettings
    recipe: RecipeSettings
    trainer: TrainerSettings

    @model_validator(mode="after")
    def _has_a_length(self) -> "TrainSettings":
        if self.tokens is None and self.data.max_length is None:
            raise ValueError("it has neither patches of images nor texts of at most max_length")
        return self

    @property
    def tokens(self) -> int | None:
        """Number of patches per image; None for texts, whose lengths differ."""
        size, patch = self.data.image_size, self.model.patch_size
        return None if size is None or patch is None else (size // patch) ** 2


@dataclass(config=VIEW, kw_only=True)
class TrainingData:
    """Training rows used, and how many there are."""

    train_on: str
    train_rows: Size
    train_split_rows: Size
    train_split_rows_in_all: Size
    split: str | None = None
    """Split of a text data set; `pooled` if training and test rows were pooled and split again."""
    train_sha256: str | None = None
    source: str | None = None

    @property
    def is_subset(self) -> bool:
        return self.train_split_rows != self.train_split_rows_in_all


@dataclass(config=VIEW, kw_only=True)
class EvaluateSettings:
    relaxation: float = RELAXATION


@dataclass(config=VIEW, kw_only=True)
class TestData:
    test_rows: Size
    test_rows_in_all: Size
    test_sha256: str | None = None
