"""The two passes of a closure as separate operators, for benchmarks; no gradient."""

import torch
from torch import Tensor

from asap_exp.ops.kernels.launch import Launch, unwritten_output
from asap_exp.ops.products import AS_ALLOWED
from asap_exp.ops.routing import choose


def attention_pass(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor | None,
    row: Tensor | None,
    slope: float,
    products: str = AS_ALLOWED,
) -> Tensor:
    """Return softmax_j(S + col) v; `row` `[B, H, N]` approximates minus the logs of the sums."""
    out = unwritten_output(q, v)
    with torch.cuda.device_of(q):
        launch_attention_pass(Launch.of(q, k, v, None, 1, slope, products), col, row, out)
    return out


def launch_attention_pass(
    launch: Launch, col: Tensor | None, row: Tensor | None, out: Tensor
) -> None:
    """Write softmax_j(S + col) v into `out`; duals are in natural units, None for zeros.

    `row` shifts the sums in kernels that keep no running maximum; other kernels ignore it.
    """
    choose("attention_pass", launch.call()).launch(launch, col, row, out)


def column_pass(
    q: Tensor, k: Tensor, row: Tensor, slope: float, products: str = AS_ALLOWED
) -> Tensor:
    """Return g `[B, H, M]` from f `[B, H, N]`, both in natural units."""
    with torch.cuda.device_of(q):
        launch = Launch.of(q, k, k, None, 1, slope, products)
        return choose("column_pass", launch.call()).launch(launch, row)
