"""The definition of every operator: plain PyTorch, float32 or float64, autograd does the rest."""

from asap_exp.ops.reference.adaptive import adaptive_features
from asap_exp.ops.reference.asap import asap_attention, predicted_dual, query_features
from asap_exp.ops.reference.logit_rows import logit_features
from asap_exp.ops.reference.potentials import sliced_potentials
from asap_exp.ops.reference.sinkhorn import (
    attention_pass,
    attention_plan,
    closure_attention,
    column_pass,
    relaxed_sinkhorn_attention,
    sinkhorn_attention,
    sinkhorn_duals,
)
from asap_exp.ops.reference.softmax import softmax_attention

__all__ = [
    "adaptive_features",
    "asap_attention",
    "attention_pass",
    "attention_plan",
    "closure_attention",
    "column_pass",
    "logit_features",
    "predicted_dual",
    "query_features",
    "relaxed_sinkhorn_attention",
    "sinkhorn_attention",
    "sinkhorn_duals",
    "sliced_potentials",
    "softmax_attention",
]
