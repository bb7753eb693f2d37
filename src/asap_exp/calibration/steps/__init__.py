"""Calibration steps, one file each; importing the package registers them all."""

import importlib
import pkgutil

from asap_exp.calibration.steps.base import (
    STEPS,
    AdamFit,
    ImitationData,
    ImitationStep,
    LayerData,
    LayerStep,
    ModelData,
    ModelStep,
    StartStep,
    Step,
    names_of,
    register,
    with_settings,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "STEPS",
    "AdamFit",
    "ImitationData",
    "ImitationStep",
    "LayerData",
    "LayerStep",
    "ModelData",
    "ModelStep",
    "StartStep",
    "Step",
    "names_of",
    "register",
    "with_settings",
]
