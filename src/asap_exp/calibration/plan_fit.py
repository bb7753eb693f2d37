"""The fit by gradient of one layer's map: KL between plans, on the layer's recorded inputs."""

from torch import Tensor

from asap_exp.attention import AsapAttention
from asap_exp.calibration.gradient import (
    Found,
    best_of_each_head,
    reshuffled,
    restore,
    trainable,
    values,
)
from asap_exp.calibration.kl import mean_kl, rows_of_all, total_kl
from asap_exp.calibration.steps import AdamFit, LayerData
from asap_exp.calibration.updates import CosineAdam


def fit_plans(
    attend: AsapAttention,
    scale: Tensor,
    data: LayerData,
    settings: AdamFit,
    *,
    slices: bool,
) -> None:
    """Lower KL(teacher's plan || plan of `attend`) over `data.fit`, in place.

    Moves the weights and, with `slices`, the slices; several ranks share each batch. Each head
    keeps its best values on `data.held_out`, the start included, so that no head ends worse there
    than it began.
    """
    updates = settings.updates

    def now() -> Found:
        return mean_kl(attend, data.held_out), values(attend)

    start = now()
    with trainable(attend, scale, slices=slices) as parameters:
        # Heads share no parameter: the sum of their means gives each its own gradient.
        adam = CosineAdam(
            lambda item: total_kl(attend, item[0]).sum() / item[1],
            parameters,
            settings.lr,
            updates,
        )
        items = list(zip(data.fit, rows_of_all(data.fit), strict=True))
        batches = data.shown(reshuffled(items, updates, data.seed), updates)
        best = best_of_each_head(adam.update, batches, updates, start, now)
    restore(attend, best)
