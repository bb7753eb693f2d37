"""The fits by gradient of one layer's map: KL between plans, on the layer's recorded inputs.

`kl` moves the weights (the paper's KL calibration); `learned_slices` moves the slices too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from asap_exp.attention import AsapAttention
from asap_exp.calibration.gradient import (
    CHECKS,
    Descent,
    check_points,
    reshuffled,
    restore,
    trainable,
    values,
)
from asap_exp.calibration.kl import Target, mean_kl, total_kl
from asap_exp.core.config import DescentConfig


def fit_plans(
    attend: AsapAttention,
    scale: Tensor,
    fit: Sequence[Target],
    held_out: Sequence[Target],
    config: DescentConfig,
    *,
    slices: bool,
    seed: int,
) -> None:
    """Lowers KL(teacher's plan || plan of `attend`) over `fit`, in place.

    Each head keeps the values that were best on `held_out`, those before the fit among them, so
    that no head ends worse there than it began.
    """
    best, lowest = values(attend), mean_kl(attend, held_out)
    checks = check_points(config.updates, CHECKS)
    with trainable(attend, scale, slices=slices) as parameters:
        descent = Descent(parameters, config.lr, config.updates)
        for number, target in enumerate(reshuffled(fit, config.updates, seed), start=1):
            # Heads share no parameter: the sum of their means gives each its own gradient.
            descent.update(total_kl(attend, target).sum() / max(target.num_rows, 1))
            if number in checks:
                now = mean_kl(attend, held_out)
                better = now < lowest  # False for NaN
                lowest = torch.where(better, now, lowest)
                for name, value in values(attend).items():
                    best[name][better] = value[better]
    restore(attend, best)
