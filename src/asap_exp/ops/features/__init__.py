"""The features that a sliced map may use beside its potentials, one file each.

Importing the package registers them all. A file is named after its key below `calibration`.
"""

import importlib
import pkgutil

from asap_exp.ops.features.base import FEATURES, Feature, Tokens, feature

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FEATURES", "Feature", "Tokens", "feature"]
