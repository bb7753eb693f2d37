"""The arithmetic of a method that streams its logits: counted by formula, never measured.

P = batch heads n^2 is the number of entries of all plans, N = batch heads n the number of tokens, D
the width and s = `passes` the number of half-steps that each go over all logits: 2 T for T Sinkhorn
updates, the last of them fused with the product with v; 2 for the closure; 1 for row softmax. Every
pass recomputes the logits, because nothing of size n x n is stored:

    forward    products  2 D P (s + 1)       exponentials  P s
    train      products  2 D P (2 s + 5)     exponentials  P (3 s - 1)

The backward pass needs one product for the adjoint of each earlier half-step, then the five
products of flash attention. Slices add 4 N D L for the projections of both sides, query features
4 N D, and the backward pass twice as much again; sorting is not counted. A coarse dual adds its
half-steps over the C^2 logits of a head's subset and one over n C, each with a product and an
exponential per entry, and twice as much again backward. Bytes count each input of the operator read
once and each output written once: q, k, v and out in the forward pass; the same and the four
gradients in the backward pass.

A kernel that keeps its logits or a head's keys on chip, which is possible up to some hundreds of
tokens, does less work and may be faster: it computes the logits once, or once per update.
"""

from dataclasses import asdict, dataclass
from typing import Any

from asap_exp.benchmark.shape import Shape

DUAL_BYTES = 4


@dataclass(frozen=True)
class Recipe:
    """Inputs of the formulas for one method."""

    passes: int
    slices: int = 0
    query_features: bool = False
    adaptive: bool = False
    """Adaptive features: means of keys and queries for all slices, multiplied with the queries."""
    row_dual: bool = False
    """True if the row dual is an input, read once."""
    subset: int = 0
    """Tokens of the subset of a coarse dual."""
    subset_passes: int = 0
    """Half-steps on the subset alone, before its dual is extended to all tokens."""


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
    subset = min(recipe.subset, shape.n)
    coarse = tokens // shape.n * subset * (recipe.subset_passes * subset + shape.n)
    tensors, also_backward = (12, 3) if train else (4, 1)
    return Work(
        flops=2 * width * (shape.pairs * products + also_backward * coarse)
        + also_backward * features,
        exponentials=shape.pairs * exponentials + also_backward * coarse,
        bytes=tensors * tokens * width * itemsize + recipe.row_dual * DUAL_BYTES * tokens,
    )


def floors(work: Work | None, ceilings: dict[str, Any]) -> dict[str, Any]:
    """Return `work` and its milliseconds at the ceilings of the device.

    `floor_ms` is the larger of the times for products and for bytes. `exponentials_ms` is separate,
    since other units compute exponentials, and None unless the device's rate was measured.
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
