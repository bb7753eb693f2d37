"""Names of the features of a map. Their code, `asap_exp.ops.features`, needs PyTorch."""

import pkgutil
from pathlib import Path

FEATURES = [
    module.name
    for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "ops" / "features")])
    if module.name != "base"
]
"""The kinds of features, each named after its file and its key below `calibration`."""
