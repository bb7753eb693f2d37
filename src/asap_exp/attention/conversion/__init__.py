"""Conversion of models that were built with the attention of timm, torch or transformers."""

from asap_exp.attention.conversion.convert import convert

__all__ = ["convert"]
