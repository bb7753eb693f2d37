"""The baseline that others would use: PyTorch's own softmax attention."""

import functools

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from asap_exp.benchmark.blocks import in_blocks
from asap_exp.benchmark.flops import Recipe
from asap_exp.benchmark.registry import Method, Operator, Setting, method, of_any_heads

FUSED = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,  # the only one for float32
}


@method("flash")
def flash(setting: Setting) -> Method:
    """Build softmax attention: PyTorch's fastest fused kernel on a GPU, its choice on a CPU."""
    attend = F.scaled_dot_product_attention
    if setting.device.type == "cuda":
        label = "flash softmax"
        operators = {
            name: Operator(attend, functools.partial(sdpa_kernel, kernel))
            for name, kernel in FUSED.items()
        }
    else:
        label, operators = "softmax, PyTorch's SDPA", {"default": Operator(attend)}
    return Method(label, "pytorch", operators, of_any_heads(softmax_attention), Recipe(passes=1))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute row softmax attention by its definition, a block of queries at a time."""

    def block(part: Tensor) -> Tensor:
        S = part @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return S.softmax(dim=-1) @ v

    return in_blocks(block, q, k.shape[2])
