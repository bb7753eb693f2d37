"""Seeded q, k, v and padding masks, and one attention of every kind."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from asap_exp.attention import ATTENTIONS, AsapAttention, Attention, build_attention

BATCH, HEADS, TOKENS, HEAD_DIM = 4, 2, 7, 4

assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)

# Padding masks: none; the end; positions in between; all but one.
MASK = torch.tensor(
    [
        [False, False, False, False, False, False, False],
        [False, False, False, False, True, True, True],
        [True, False, False, True, False, True, False],
        [True, True, True, True, False, True, True],
    ]
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_qkv(batch: int = BATCH, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    shape = (batch, HEADS, tokens, HEAD_DIM)
    return normal(*shape), normal(*shape, seed=1), normal(*shape, seed=2)


def make_asap(heads: int = HEADS, head_dim: int = HEAD_DIM, **options) -> AsapAttention:
    theta = torch.nn.functional.normalize(normal(heads, 3, head_dim, seed=3), dim=-1)
    query_weight = 0.1 * normal(heads, head_dim + 1, seed=5)
    return AsapAttention(theta, normal(heads, 3, seed=4), query_weight, **options)


TRAINABLE = sorted(name for name, cls in ATTENTIONS.items() if not cls.needs_calibration)
# Every attention that YAML can build, by the registry, and ASAP with and without refinement.
MAKERS: dict[str, Callable[[], Attention]] = {
    name: partial(build_attention, {"name": name}) for name in TRAINABLE
} | {
    # Soft enough that no entry of the plan underflows.
    "espformer": partial(build_attention, {"name": "espformer", "tau": 1.0}),
    "asap": make_asap,
    "asap refined": partial(make_asap, refine=2, eps=0.7),
    "sinkhorn of other options": partial(
        build_attention, {"name": "sinkhorn", "num_iters": 3, "eps": 0.7}
    ),
    "coarse of few tokens": partial(
        build_attention, {"name": "coarse", "tokens": 3, "subset": "random", "weights": "voronoi"}
    ),
    "coarse, refined": partial(build_attention, {"name": "coarse", "tokens": 3, "refine": 2}),
    "coarse in one pass": partial(
        build_attention, {"name": "coarse", "tokens": 3, "subset": "farthest", "one_pass": True}
    ),
}


def make(name: str) -> Attention:
    return MAKERS[name]()
