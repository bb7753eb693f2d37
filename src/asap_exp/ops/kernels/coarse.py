"""Coarse attention: the passes over all pairs are fused, the duals of a subset plain PyTorch.

One pass is the attention pass of the other operators with the predicted column dual as a bias; it
has no gradient.
"""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.kernels.launch import Launch, unwritten_output
from asap_exp.ops.kernels.sinkhorn.attention import closure_attention
from asap_exp.ops.kernels.sinkhorn.passes import launch_attention_pass
from asap_exp.ops.products import AS_ALLOWED
from asap_exp.ops.reference.coarse import coarse_col, coarse_ready
from asap_exp.ops.subsets import Subset


def coarse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None,
    num_iters: int,
    one_pass: bool,
    products: str = AS_ALLOWED,
    **options: Any,
) -> Tensor:
    subsets = subset, key_subset
    if one_pass:
        col = coarse_col(q, k, *subsets, num_iters=num_iters, **options)
        slope, padding = options["scale"] / options["eps"], options["key_padding_mask"]
        return _biased_softmax(q, k, v, col, padding, slope, products)
    ready = coarse_ready(q, k, *subsets, num_iters=num_iters, **options)
    return closure_attention(q, k, v, ready, products=products, **options)


@torch.library.custom_op("asap_exp::biased_softmax", mutates_args=())
def _biased_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor,
    padding: Tensor | None,
    slope: float,
    products: str,
) -> Tensor:
    out = unwritten_output(q, v)
    if out.numel():
        with torch.cuda.device_of(q):
            launch = Launch.of(q, k, v, padding, 1, slope, products)
            launch_attention_pass(launch, col.contiguous(), None, out)
    return out


@_biased_softmax.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor,
    padding: Tensor | None,
    slope: float,
    products: str,
) -> Tensor:
    return unwritten_output(q, v)
