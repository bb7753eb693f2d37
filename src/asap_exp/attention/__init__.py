"""Attentions on q, k, v, one file each; importing the package registers all of them."""

import importlib
import pkgutil

from asap_exp.attention.base import (
    ATTENTIONS,
    Attention,
    attention_class,
    attention_config,
    attention_options,
    attention_origin,
    build_attention,
    canonical_options,
    register,
    without_younger,
)
from asap_exp.attention.layer import AttentionLayer, MultiHeadAttention
from asap_exp.attention.recording import LayerInputs, record_inputs
from asap_exp.attention.swapping import (
    attention_layers,
    fill_attention,
    swap_attention,
    swapped,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from asap_exp.attention.asap import AsapAttention  # noqa: E402
from asap_exp.attention.coarse import CoarseAttention, check_fills_grid, warn_if_all  # noqa: E402
from asap_exp.attention.differential import DifferentialAttention  # noqa: E402
from asap_exp.attention.espformer import EspformerAttention  # noqa: E402
from asap_exp.attention.hedgehog import HedgehogAttention  # noqa: E402
from asap_exp.attention.learned import LearnedAttention  # noqa: E402
from asap_exp.attention.lotformer import LotformerAttention  # noqa: E402
from asap_exp.attention.relaxed_sinkhorn import RelaxedSinkhornAttention  # noqa: E402
from asap_exp.attention.sinkhorn import SinkhornAttention  # noqa: E402
from asap_exp.attention.softmax import SoftmaxAttention  # noqa: E402
from asap_exp.attention.uniform import UniformAttention  # noqa: E402

__all__ = [
    "ATTENTIONS",
    "AsapAttention",
    "Attention",
    "AttentionLayer",
    "CoarseAttention",
    "DifferentialAttention",
    "EspformerAttention",
    "HedgehogAttention",
    "LayerInputs",
    "LearnedAttention",
    "LotformerAttention",
    "MultiHeadAttention",
    "RelaxedSinkhornAttention",
    "SinkhornAttention",
    "SoftmaxAttention",
    "UniformAttention",
    "attention_class",
    "attention_config",
    "attention_layers",
    "attention_options",
    "attention_origin",
    "build_attention",
    "canonical_options",
    "check_fills_grid",
    "fill_attention",
    "record_inputs",
    "register",
    "swap_attention",
    "swapped",
    "warn_if_all",
    "without_younger",
]
