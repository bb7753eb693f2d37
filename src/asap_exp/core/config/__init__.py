"""Schemas of the stages' configurations: keys, their types and allowed values.

The values live in `conf/`. A composed configuration becomes one of these dataclasses
(`asap_exp.core.composing`). Each field states its own range or choices (`fields`), which
`asap_exp.core.schema` checks; `__post_init__` holds the rules between fields.
"""

from asap_exp.core.config.benchmark import BenchmarkConfig, SuiteConfig
from asap_exp.core.config.data import (
    AugmentConfig,
    DataConfig,
    ImageDataConfig,
    RandAugmentConfig,
    TextDataConfig,
)
from asap_exp.core.config.distill import BudgetConfig, LayerConfig
from asap_exp.core.config.evaluate import CorruptionConfig, EvaluateConfig
from asap_exp.core.config.fields import (
    ACCELERATORS,
    LARGEST_RATE,
    LARGEST_SETTING,
    MOST_LAYERS,
    MOST_REPEATS,
    MOST_SLICES,
    MOST_THREADS,
    MOST_UPDATES,
    MOST_WIDTH,
    PRECISIONS,
)
from asap_exp.core.config.model import AttentionOptions, EncoderConfig, ModelConfig, ViTConfig
from asap_exp.core.config.own_data import (
    OWN_SCHEMAS,
    REQUEST_SCHEMAS,
    OwnDataConfig,
    OwnImageDataConfig,
    OwnImageTrainConfig,
    OwnImageTrainRequest,
    OwnTextDataConfig,
    OwnTextTrainConfig,
    OwnTextTrainRequest,
)
from asap_exp.core.config.recipe import (
    OPTIMIZERS,
    SCHEDULES,
    RecipeConfig,
    TextRecipeConfig,
)
from asap_exp.core.config.report import ReportConfig
from asap_exp.core.config.shared import (
    DataLocation,
    LatencyConfig,
    LoggerConfig,
    MovedData,
    PathsConfig,
    TaskConfig,
)
from asap_exp.core.config.train import (
    TRAIN_SCHEMAS,
    CallbacksConfig,
    EarlyStoppingConfig,
    ImageTrainConfig,
    TextTrainConfig,
    TrainConfig,
)
from asap_exp.core.config.trainer import OTHERWISE, PASSED_ON, SAME_RESULTS, TrainerConfig

__all__ = [
    "ACCELERATORS",
    "LARGEST_RATE",
    "LARGEST_SETTING",
    "MOST_LAYERS",
    "MOST_REPEATS",
    "MOST_SLICES",
    "MOST_THREADS",
    "MOST_UPDATES",
    "MOST_WIDTH",
    "OPTIMIZERS",
    "OTHERWISE",
    "OWN_SCHEMAS",
    "PASSED_ON",
    "PRECISIONS",
    "REQUEST_SCHEMAS",
    "SAME_RESULTS",
    "SCHEDULES",
    "TRAIN_SCHEMAS",
    "AttentionOptions",
    "AugmentConfig",
    "BenchmarkConfig",
    "BudgetConfig",
    "CallbacksConfig",
    "CorruptionConfig",
    "DataConfig",
    "DataLocation",
    "EarlyStoppingConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "ImageDataConfig",
    "ImageTrainConfig",
    "LatencyConfig",
    "LayerConfig",
    "LoggerConfig",
    "ModelConfig",
    "MovedData",
    "OwnDataConfig",
    "OwnImageDataConfig",
    "OwnImageTrainConfig",
    "OwnImageTrainRequest",
    "OwnTextDataConfig",
    "OwnTextTrainConfig",
    "OwnTextTrainRequest",
    "PathsConfig",
    "RandAugmentConfig",
    "RecipeConfig",
    "ReportConfig",
    "SuiteConfig",
    "TaskConfig",
    "TextDataConfig",
    "TextRecipeConfig",
    "TextTrainConfig",
    "TrainConfig",
    "TrainerConfig",
    "ViTConfig",
]
