"""Row softmax of padded tokens: the final attention pass, with zeros for the keys' dual.

PyTorch's flash kernels take no padding mask, and its other kernels are several times slower.
"""

from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.call import Call
from asap_exp.ops.kernels.launch import Launch, unwritten_output
from asap_exp.ops.kernels.sinkhorn.passes import launch_attention_pass
from asap_exp.ops.products import IEEE
from asap_exp.ops.routing import choose


def pytorch_slower(call: Call) -> str | None:
    """Return why PyTorch's own kernels are slower, or None if they are the fastest."""
    if call.padded and not call.has_float32:
        return "PyTorch's flash kernels take no padding mask"
    return None


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_padding_mask: Tensor | None,
    products: str = IEEE,
    **options: Any,
) -> Tensor:
    """Compute row softmax attention by the fastest route; no gradient.

    Float32 inputs run in PyTorch, whatever `products` says.
    """
    call = Call(
        q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.dtype, v.dtype,
        padded=key_padding_mask is not None,
    )  # fmt: skip
    route = choose("softmax", call)
    return route.launch(q, k, v, key_padding_mask=key_padding_mask, **options)


def in_one_pass(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float, scale: float, key_padding_mask: Tensor | None
) -> Tensor:
    return _softmax(q, k, v, key_padding_mask, scale / eps)


@torch.library.custom_op("asap_exp::softmax", mutates_args=())
def _softmax(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, slope: float) -> Tensor:
    out = unwritten_output(q, v)
    if out.numel():
        with torch.cuda.device_of(q):
            launch_attention_pass(Launch.of(q, k, v, padding, 1, slope), None, None, out)
    return out


@_softmax.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return unwritten_output(q, v)
