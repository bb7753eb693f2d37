"""Doubly-stochastic attention as pure functions on tensors; torch is the only dependency.

Tensors are `[batch, heads, tokens, head_dim]`; q has N tokens, k and v have M. `key_padding_mask`
`[B, N]`, True = padded, masks the same tokens as queries and as keys and so needs N = M. `eps` > 0
is the entropic temperature, `scale` defaults to head_dim ** -0.5. Inputs are float16, bfloat16,
float32 or float64; duals, potentials and plans are float32, or float64 for float64 inputs. Every
result is exactly 0 at padded positions, and a sample without a valid token yields zeros. ValueError
and TypeError name the offending argument.

`backend` is "reference", "triton" (fused kernels: float16, bfloat16 and float32 on a GPU) or
"auto", which uses the fused kernels wherever they can run and support the required gradients.
`routes` decides which kernel runs; `explain` prints why. The kernels multiply float32 matrices in
three TF32 passes, as accurate as IEEE arithmetic, or in one where PyTorch is allowed TF32
(`torch.backends.cuda.matmul.fp32_precision = "tf32"`); "ieee" is "auto" with IEEE arithmetic.
The fused kernels have first derivatives only: for second derivatives and `torch.func`, use
backend="reference". There, `implicit_steps` alone has no derivative that goes forward
(`torch.func.jvp`, `jacfwd` and `hessian`): take `jacrev` twice. `gradient_updates`,
`implicit_steps` and hard sorts choose the first derivative, which further ones are taken of.
"""

from asap_exp.ops.attentions import (
    asap_attention,
    choose_subset,
    closure_attention,
    coarse_attention,
    espformer_attention,
    map_attention,
    relaxed_sinkhorn_attention,
    sinkhorn_attention,
    softmax_attention,
)
from asap_exp.ops.coarse_settings import CoarseSettings
from asap_exp.ops.explanation import Explanation, explain
from asap_exp.ops.intermediates import (
    adaptive_features,
    attention_plan,
    coarse_duals,
    coarse_plan,
    espformer_plan,
    logit_features,
    map_dual,
    map_features,
    one_pass_plan,
    predicted_dual,
    query_features,
    sinkhorn_duals,
    sliced_potentials,
)
from asap_exp.ops.reference.coarse import CoarseDuals
from asap_exp.ops.reference.sinkhorn import SinkhornDuals
from asap_exp.ops.sliced_map import SlicedMap
from asap_exp.ops.subsets import Subset

__all__ = [
    "CoarseDuals",
    "CoarseSettings",
    "Explanation",
    "SinkhornDuals",
    "SlicedMap",
    "Subset",
    "adaptive_features",
    "asap_attention",
    "attention_plan",
    "choose_subset",
    "closure_attention",
    "coarse_attention",
    "coarse_duals",
    "coarse_plan",
    "espformer_attention",
    "espformer_plan",
    "explain",
    "logit_features",
    "map_attention",
    "map_dual",
    "map_features",
    "one_pass_plan",
    "predicted_dual",
    "query_features",
    "relaxed_sinkhorn_attention",
    "sinkhorn_attention",
    "sinkhorn_duals",
    "sliced_potentials",
    "softmax_attention",
]
