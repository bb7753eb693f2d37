"""Networks that contain the attention layers."""

from asap_exp.models.build import (
    build_net,
    compile_as_configured,
    compile_blocks,
    compile_net,
    load_net,
    load_weights,
)
from asap_exp.models.text import TextEncoder
from asap_exp.models.vit import build_vit, tokens_of_images

__all__ = [
    "TextEncoder",
    "build_net",
    "build_vit",
    "compile_as_configured",
    "compile_blocks",
    "compile_net",
    "load_net",
    "load_weights",
    "tokens_of_images",
]
