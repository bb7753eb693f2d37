"""Data sets as LightningDataModules; importing the package touches no network, nor PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asap_exp.data.build import build_data
    from asap_exp.data.images import ImageDataModule
    from asap_exp.data.module import TaskDataModule

__all__ = ["ImageDataModule", "TaskDataModule", "build_data"]

MODULES = {"ImageDataModule": "images", "TaskDataModule": "module", "build_data": "build"}


def __getattr__(name: str) -> Any:
    """Import the names that need PyTorch on first use; the catalogue works without it."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
