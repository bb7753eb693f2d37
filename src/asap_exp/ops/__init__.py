"""Doubly-stochastic attention as pure functions on tensors; torch is the only dependency."""

from asap_exp.ops.api import (
    SinkhornDuals,
    adaptive_features,
    asap_attention,
    attention_plan,
    closure_attention,
    logit_features,
    predicted_dual,
    query_features,
    relaxed_sinkhorn_attention,
    sinkhorn_attention,
    sinkhorn_duals,
    sliced_potentials,
    softmax_attention,
)
from asap_exp.ops.explanation import Explanation, explain

__all__ = [
    "Explanation",
    "SinkhornDuals",
    "adaptive_features",
    "asap_attention",
    "attention_plan",
    "closure_attention",
    "explain",
    "logit_features",
    "predicted_dual",
    "query_features",
    "relaxed_sinkhorn_attention",
    "sinkhorn_attention",
    "sinkhorn_duals",
    "sliced_potentials",
    "softmax_attention",
]
