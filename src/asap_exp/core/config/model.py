"""The model to train, and the allowed options of its attention."""

from dataclasses import dataclass
from typing import Annotated

from asap_exp.core.config.fields import (
    COARSE_CHOICES,
    LARGEST_SETTING,
    MOST_LAYERS,
    MOST_WIDTH,
    Count,
    Odd,
    Probability,
    Range,
    Relaxation,
    above,
    at_least,
    at_most,
    one_of,
)
from asap_exp.core.errors import UserError

MOST_ITERATIONS = 10**6
"""Upper bound of counts among an attention's options."""


@dataclass
class ModelConfig:
    name: str
    dim: Annotated[int, at_least(1), at_most(MOST_WIDTH)]
    depth: Annotated[int, at_least(1), at_most(MOST_LAYERS)]
    heads: Count
    mlp_ratio: Annotated[float, above(0), at_most(1000)]
    qk_norm: bool
    drop_path: Probability
    dropout: Probability

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UserError(f"model.dim={self.dim} must be a multiple of model.heads={self.heads}")


@dataclass
class ViTConfig(ModelConfig):
    patch_size: Count


@dataclass
class EncoderConfig(ModelConfig):
    positions: Annotated[str, one_of("learned", "sinusoidal", "frozen_noise")]
    pooling: Annotated[str, one_of("mean", "max", "cls", "max_padded")]
    norm: Annotated[str, one_of("pre", "post")]
    activation: Annotated[str, one_of("gelu", "relu")]
    head_softmax: bool
    causal: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.causal:
            raise UserError(
                "model.causal=true is refused. Causal models have no doubly-stochastic plan with "
                "uniform marginals; choose model.causal=false and data.objective=mlm"
            )


@dataclass
class AttentionOptions:
    """Allowed values of attention options, checked before PyTorch is loaded.

    The file in `conf/train/attention/` says which options an attention has. An option that is not
    listed here takes any value of its type; the attention's class refuses what it cannot use.
    """

    num_iters: Annotated[int, at_least(1), at_most(MOST_ITERATIONS)]
    gradient_updates: Annotated[int, at_least(1), at_most(MOST_ITERATIONS)]
    implicit_steps: Annotated[int, at_least(1), at_most(MOST_ITERATIONS)]
    refine: Annotated[int, at_least(0), at_most(MOST_ITERATIONS)]
    half_steps: Annotated[int, at_least(3), Odd(), at_most(MOST_ITERATIONS)]
    eps: Annotated[float, above(0), at_most(LARGEST_SETTING)]
    relaxation: Relaxation
    temperature: Annotated[float, Range(minimum=0), at_most(LARGEST_SETTING)]
    tau: Annotated[float, above(0), at_most(LARGEST_SETTING)]
    backend: Annotated[str, one_of("auto", "reference", "triton", "ieee")]
    gradient: Annotated[str, one_of("unroll", "detach_col")]
    padding: Annotated[str, one_of("exact", "sinkformer")]
    tokens: Annotated[int, at_least(1), at_most(MOST_ITERATIONS)]
    subset: Annotated[str, one_of(*COARSE_CHOICES)]
    weights: Annotated[str, one_of("equal", "voronoi")]
    seed: Annotated[int, at_least(0), at_most(MOST_ITERATIONS)]
    grid_width: Annotated[int, at_least(0), at_most(MOST_ITERATIONS)]
    pivots: Annotated[int, at_least(1), at_most(MOST_ITERATIONS)]
    pivot_std: Annotated[float, above(0), at_most(LARGEST_SETTING)]
    lambda_per: Annotated[str, one_of("head", "layer")]
    sorting: Annotated[str, one_of("soft", "hard")]
    slices: Annotated[int, at_least(0), at_most(MOST_ITERATIONS)]
