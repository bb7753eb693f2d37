"""Operators of other libraries, which the extra `peers` installs."""

import functools
import math

import torch
from torch import Tensor

from asap_exp.benchmark.flops import Recipe
from asap_exp.benchmark.operators import blockwise_teacher
from asap_exp.benchmark.precision import in_tf32
from asap_exp.benchmark.registry import (
    Method,
    Operator,
    Setting,
    Unavailable,
    method,
    of_any_heads,
)
from asap_exp.ops.products import ONE_PASS, float32_products

FLASH_SINKHORN = "flash-sinkhorn"


@method("flash_sinkhorn_{num_iters}", package=FLASH_SINKHORN)
def flash_sinkhorn(setting: Setting, num_iters: int) -> Method:
    """Build the teacher by flash-sinkhorn; its last product with v is a pass of its own."""
    if setting.device.type != "cuda":
        raise Unavailable(f"{FLASH_SINKHORN} runs on a GPU alone")
    return Method(
        f"{FLASH_SINKHORN} T = {num_iters}",
        FLASH_SINKHORN,
        {"one head at a time": Operator(functools.partial(head_by_head, num_iters=num_iters))},
        of_any_heads(functools.partial(blockwise_teacher, num_iters=num_iters)),
        Recipe(passes=2 * num_iters + 1),
    )


@method("flash_sinkhorn_tf32_{num_iters}", package=FLASH_SINKHORN)
def flash_sinkhorn_tf32(setting: Setting, num_iters: int) -> Method:
    """Build it with products in TF32, its own default."""
    return in_tf32(flash_sinkhorn(setting, num_iters))


def head_by_head(q: Tensor, k: Tensor, v: Tensor, *, num_iters: int) -> Tensor:
    """Compute the teacher for each head of each sample in turn: point clouds have two dimensions.

    Products are in TF32 where PyTorch is allowed it, which is exact for 16-bit q and k, else IEEE.
    """
    tf32 = float32_products() == ONE_PASS
    heads = zip(*(x.detach().float().flatten(0, 1) for x in (q, k, v)), strict=True)
    out = [transported(*head, num_iters=num_iters, tf32=tf32) for head in heads]
    return torch.stack(out).view(v.shape).to(v.dtype)


def transported(q: Tensor, k: Tensor, v: Tensor, *, num_iters: int, tf32: bool) -> Tensor:
    """Compute A v `[N, E]` of one head by flash-sinkhorn's own half steps.

    Its cost |q_i - k_j|^2 / 2 at eps = sqrt(D) is -S_ij plus a term of each query and one of each
    key, which it keeps out of its kernels: the potentials it computes with are f eps and g eps of
    the logits S. Weights of 1, whose logarithm is 0, make them those of a plan whose rows sum to 1.
    Its solver runs the same half steps from other potentials, so that finitely many of its updates
    give another plan.
    """
    from flash_sinkhorn.kernels import apply_plan_mat_flashstyle
    from flash_sinkhorn.kernels.sinkhorn_flashstyle_sqeuclid import flashsinkhorn_lse_fused

    eps = math.sqrt(q.shape[1])
    step = functools.partial(flashsinkhorn_lse_fused, eps=eps, cost_scale=0.5, allow_tf32=tf32)
    zeros = q.new_zeros(len(q))
    row = col = zeros
    for _ in range(num_iters):
        col = step(k, q, row, zeros)
        row = step(q, k, col, zeros)
    return apply_plan_mat_flashstyle(
        q, k, row, col, zeros, zeros, v, eps=eps, axis=1, cost_scale=0.5, allow_tf32=tf32
    )
