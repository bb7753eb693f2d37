"""The definition of every operator in plain PyTorch, differentiated by autograd."""

from asap_exp.ops.features.query_features import query_features
from asap_exp.ops.reference.adaptive import adaptive_features
from asap_exp.ops.reference.asap import map_attention, map_dual, map_features
from asap_exp.ops.reference.coarse import coarse_attention, coarse_duals, coarse_plan
from asap_exp.ops.reference.espformer import espformer_attention, espformer_plan
from asap_exp.ops.reference.logit_rows import logit_features
from asap_exp.ops.reference.potentials import sliced_potentials
from asap_exp.ops.reference.sinkhorn import (
    attention_pass,
    attention_plan,
    closure_attention,
    column_pass,
    column_step,
    logits,
    one_pass_plan,
    relaxed_sinkhorn_attention,
    row_step,
    sinkhorn_attention,
    sinkhorn_duals,
)
from asap_exp.ops.reference.softmax import softmax_attention

__all__ = [
    "adaptive_features",
    "attention_pass",
    "attention_plan",
    "closure_attention",
    "coarse_attention",
    "coarse_duals",
    "coarse_plan",
    "column_pass",
    "column_step",
    "espformer_attention",
    "espformer_plan",
    "logit_features",
    "logits",
    "map_attention",
    "map_dual",
    "map_features",
    "one_pass_plan",
    "query_features",
    "relaxed_sinkhorn_attention",
    "row_step",
    "sinkhorn_attention",
    "sinkhorn_duals",
    "sliced_potentials",
    "softmax_attention",
]
