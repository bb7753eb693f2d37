"""Which attention of other libraries can be converted, by the full name of its class.

The modules that convert them import those libraries, so they are imported where a model needs them.
"""

import importlib
import re
from typing import Any

from torch import nn

from asap_exp.attention.conversion.adopted import Adopted

FAMILIES = {
    "timm.layers.attention.Attention": "timm_plain.PlainAttention",
    "timm.layers.attention.AttentionRope": "timm_rope.RopeAttention",
    "timm.models.eva.EvaAttention": "timm_rope.EvaAttention",
    "timm.models.beit.Attention": "timm_biased.BeitAttention",
    "timm.models.swin_transformer.WindowAttention": "timm_biased.SwinAttention",
    "torch.nn.modules.activation.MultiheadAttention": "torch_multihead.TorchMultiheadAttention",
    "transformers.models.bert.modeling_bert.BertSelfAttention": "hf.BertSelfAttention",
    "transformers.models.vit.modeling_vit.ViTAttention": "hf.ViTAttention",
}

OBSTACLES = {
    r"Pool": "it pools the tokens with queries of its own: from one query, the only plan with "
    "uniform marginals is the mean",
    r"\.DiffAttention$": "its plan is a difference of two softmaxes",
    r"\.ParallelScalingBlock$": "its attention and its MLP are one projection",
    r"[Ll]inear|LiteMLA|EfficientAdditive": "it is linear attention: there are no logits",
    r"\.swin_transformer_v2": "its logits are cosines with a learned temperature and a bias",
    r"\.(maxxvit|levit|efficientformer\w*|efficientvit_msra|tiny_vit|gcvit)\.|_(relpos|sam)\.": (
        "it adds a position bias in a way of its own"
    ),
    r"\.xcit\.XCA|\.davit\.Channel|CrossCovariance": (
        "it attends from channel to channel, not from token to token"
    ),
    r"TalkingHead|ClassAtt": "it mixes heads, or has the class token alone as query",
    r"\.(pvt_v2|twins|mvitv2|nextvit|hiera\w*|visformer|coat|davit|halo_attn)\.": (
        "it gathers its keys (windows, neighbours, pooled tokens) in a way of its own"
    ),
    r"Cross": "it attends from one sequence to another in a way of its own",
}
"""Reasons by a pattern of the class's full name; the first that matches holds."""

BY_HAND = (
    "put asap_exp.attention.MultiHeadAttention in its place by hand or, where it is called or "
    "returns otherwise, an AttentionLayer of your own (docs/own_model.md, A layer of your own)"
)
UNKNOWN = f"convert does not know this class; {BY_HAND}, or skip it"
WRITTEN_OUT = (
    f"Attention that is written into the forward of another module is not found: {BY_HAND}"
)

LIBRARIES = ("timm.", "torch.", "transformers.")


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def adopter(module: nn.Module) -> type[Adopted] | None:
    """Return the class of the layers that take the place of `module`, or None."""
    target = FAMILIES.get(full_name(type(module)))
    if target is None:
        return None
    file, _, name = target.partition(".")
    return getattr(importlib.import_module(f"asap_exp.attention.conversion.{file}"), name)


def obstacle(module: nn.Module) -> str:
    """Return why attention of a class that is not among `FAMILIES` cannot be converted."""
    derived = [base for base in type(module).__mro__[1:] if full_name(base) in FAMILIES]
    if derived:
        return f"it derives from {full_name(derived[0])} and may compute something else"
    if getattr(module, "is_causal", False) is True:
        return "it is causal, and the identity is the only causal doubly-stochastic plan"
    name = full_name(type(module))
    if not name.startswith(LIBRARIES):
        return UNKNOWN
    return next((why for pattern, why in OBSTACLES.items() if re.search(pattern, name)), UNKNOWN)


def looks_like_attention(module: Any) -> bool:
    """Return True if its class or its attributes say that a module computes attention."""
    name = type(module).__name__
    if re.search(r"Attention|MHSA|GPSA|SHSA|LiteMLA", name) or hasattr(module, "fused_attn"):
        return True
    heads = ("num_heads", "n_heads", "n_head", "heads")
    return "Attn" in name and any(hasattr(module, key) for key in heads)
