"""Fused operators with the names of `ops.reference`.

Only ESPFormer's stores anything of size n x m: its distances and its plan.
"""

from asap_exp.ops.kernels.asap.op import map_attention, map_dual, sliced_potentials
from asap_exp.ops.kernels.coarse.op import coarse_attention, coarse_duals
from asap_exp.ops.kernels.espformer.op import espformer_attention
from asap_exp.ops.kernels.sinkhorn.attention import (
    closure_attention,
    relaxed_sinkhorn_attention,
    sinkhorn_attention,
    sinkhorn_duals,
)
from asap_exp.ops.kernels.sinkhorn.passes import attention_pass, column_pass
from asap_exp.ops.kernels.softmax import softmax_attention

__all__ = [
    "attention_pass",
    "closure_attention",
    "coarse_attention",
    "coarse_duals",
    "column_pass",
    "espformer_attention",
    "map_attention",
    "map_dual",
    "relaxed_sinkhorn_attention",
    "sinkhorn_attention",
    "sinkhorn_duals",
    "sliced_potentials",
    "softmax_attention",
]
