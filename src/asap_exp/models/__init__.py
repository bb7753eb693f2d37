"""The networks that hold the attention layers."""

from asap_exp.models.build import build_net, load_net
from asap_exp.models.vit import build_vit

__all__ = ["build_net", "build_vit", "load_net"]
