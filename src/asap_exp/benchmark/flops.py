"""The arithmetic of a method that streams its logits: counted by formula, never measured.

With P = batch heads n^2 entries of all plans, N = batch heads n tokens, width D and
s = `passes`, the half-steps that each go over all logits (2 T for T Sinkhorn updates, the last of
them fused with the product with v; 2 for the closure; 1 for row softmax), every pass computing the
logits anew because nothing of size n x n is stored:

    forward    products  2 D P (s + 1)       exponentials  P s
    train      products  2 D P (2 s + 5)     exponentials  P (3 s - 1)

The backward pass is one product for the adjoint of each earlier half-step, then the five of flash
attention. Slices add 4 N D L for the projections of both sides, query features 4 N D, and twice as
much again in the backward pass; sorting is not counted. Bytes are the operator's inputs read and
outputs written once: q, k, v, out forward; backward those, the four gradients.

A kernel that keeps its logits or a head's keys on chip, as up to some hundreds of tokens allow,
does less and may be faster: it makes the logits once, or once an update.
"""

from dataclasses import asdict, dataclass
from typing import Any

from asap_exp.benchmark.shape import Shape

DUAL_BYTES = 4


@dataclass(frozen=True)
class Recipe:
    """What of a method the formulas need."""

    passes: int
    slices: int = 0
    query_features: bool = False
    adaptive: bool = False
    """Means of keys and of queries, all slices at once, and their products with the queries."""
    row_dual: bool = False
    """The row dual is an input, read once."""


@dataclass(frozen=True)
class Work:
    flops: float
    exponentials: float
    bytes: float


def count(recipe: Recipe, shape: Shape, *, train: bool, itemsize: int) -> Work:
    s, tokens, width = recipe.passes, shape.tokens, shape.head_dim
    products = 2 * s + 5 if train else s + 1
    exponentials = 3 * s - 1 if train else s
    directions = recipe.slices + recipe.query_features + 2 * recipe.adaptive
    features = 4 * tokens * width * directions
    tensors = 12 if train else 4
    return Work(
        flops=2 * width * shape.pairs * products + features * (3 if train else 1),
        exponentials=shape.pairs * exponentials,
        bytes=tensors * tokens * width * itemsize + recipe.row_dual * DUAL_BYTES * tokens,
    )


def floors(work: Work | None, ceilings: dict[str, Any]) -> dict[str, Any]:
    """`work` in milliseconds at the ceilings: `floor_ms` is the larger of products and bytes.

    `exponentials_ms` stands beside it where the device's rate was measured: other units take them.
    """
    if work is None:
        return {"work": None, "floor_ms": None, "exponentials_ms": None}
    products_ms = work.flops / ceilings["product_tflops"] / 1e9
    bytes_ms = work.bytes / ceilings["copy_gb_per_second"] / 1e6
    rate = ceilings["exponentials_per_second"]
    return {
        "work": asdict(work),
        "floor_ms": max(products_ms, bytes_ms),
        "exponentials_ms": None if rate is None else work.exponentials / rate * 1e3,
    }
