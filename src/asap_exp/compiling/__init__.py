"""Compile any model that holds this project's attention layers, without Hydra or Lightning.

model = asap_exp.convert(model, attention="sinkhorn")
compiled = asap_exp.compile(model, loader)
asap_exp.save_compiled(compiled, "folder")
compiled = asap_exp.load_compiled(model, "folder")
asap_exp.drift(compiled, batch)
"""

from asap_exp.attention.conversion.convert import convert
from asap_exp.compiling.compilation import compile
from asap_exp.compiling.drifting import drift
from asap_exp.compiling.saving import artifact_of, load_compiled, save_compiled

__all__ = ["artifact_of", "compile", "convert", "drift", "load_compiled", "save_compiled"]
