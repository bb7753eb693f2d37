"""The operators on q, k and v: the teacher, its duals, the closure and relaxed updates.

`options` are eps, scale and key_padding_mask, as the public operators have checked them, and the
`products` of float32 matrices.
"""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.kernels.launch import Launch, unwritten_output
from asap_exp.ops.kernels.sinkhorn import logits_in_registers
from asap_exp.ops.kernels.sinkhorn.op import sinkhorn
from asap_exp.ops.kernels.sinkhorn.updates import refined_attention
from asap_exp.ops.kernels.tiles import LOG2_E
from asap_exp.ops.masking import blank
from asap_exp.ops.products import AS_ALLOWED
from asap_exp.ops.reference.sinkhorn import SinkhornDuals
from asap_exp.ops.routing import choose


def sinkhorn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_iters: int,
    gradient_updates: int | None = None,
    implicit_steps: int | None = None,
    **options: Any,
) -> Tensor:
    """Run T updates from 0 and multiply the plan with v, in one operator."""
    solution = sinkhorn(
        q, k, v, None, num_iters=num_iters,
        gradient_updates=gradient_updates, implicit_steps=implicit_steps or 0, **options,
    )  # fmt: skip
    return solution.out


def closure_attention(q: Tensor, k: Tensor, v: Tensor, row_dual: Tensor, **options: Any) -> Tensor:
    """Run one update from `row_dual` and multiply the plan with v, in one operator."""
    return sinkhorn(q, k, v, row_dual, num_iters=1, **options).out


def sinkhorn_duals(q: Tensor, k: Tensor, *, num_iters: int, **options: Any) -> SinkhornDuals:
    """Return the duals of T updates; no gradient."""
    no_values = k[..., :0]  # only the duals are needed
    solution = sinkhorn(q, k, no_values, None, num_iters=num_iters, keep_duals=True, **options)
    duals = (solution.rows[:, :, -2], solution.rows[:, :, -1], solution.cols[:, :, -1])
    mask = options["key_padding_mask"]
    return SinkhornDuals(*(blank(dual / LOG2_E, mask, 2) for dual in duals))


def relaxed_sinkhorn_attention(
    q: Tensor, k: Tensor, v: Tensor, *, num_iters: int, relaxation: float, **options: Any
) -> Tensor:
    """Run relaxed updates from 0, then the closure."""
    call = Call(
        q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.dtype, v.dtype, num_iters,
        gradient=gradient_needed(q, k, v), relaxed=True,
    )  # fmt: skip
    route = choose("relaxed_sinkhorn", call)
    return route.launch(q, k, v, num_iters, relaxation, **options)


def relaxed_in_registers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_iters: int,
    relaxation: float,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    products: str = AS_ALLOWED,
) -> Tensor:
    """Run relaxed updates and the closure in one launch."""
    numbers = num_iters, relaxation, scale / eps
    return _relaxed_sinkhorn(q, k, v, key_padding_mask, *numbers, products)


def updates_then_closure(
    q: Tensor, k: Tensor, v: Tensor, num_iters: int, relaxation: float, **options: Any
) -> Tensor:
    """Run relaxed updates and the closure in separate operators."""
    start = q.new_zeros(q.shape[:3], dtype=torch.float32)
    return refined_attention(q, k, v, start, refine=num_iters - 1, relaxation=relaxation, **options)


@torch.library.custom_op("asap_exp::relaxed_sinkhorn", mutates_args=())
def _relaxed_sinkhorn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    num_iters: int,
    relaxation: float,
    slope: float,
    products: str,
) -> Tensor:
    out = unwritten_output(q, v)
    if out.numel():
        with torch.cuda.device_of(q):
            launch = Launch.of(q, k, v, padding, num_iters, slope, products)
            logits_in_registers.launch_relaxed(launch, out, relaxation)
    return out


@_relaxed_sinkhorn.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return unwritten_output(q, v)
