"""KL between the predictions of teacher and compiled model, over the maps of all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from asap_exp.calibration.steps.base import AdamFit, ModelData, ModelStep, register

if TYPE_CHECKING:
    from torch import Tensor

    from asap_exp.attention import AsapAttention


@register("end_to_end")
class EndToEnd(ModelStep):
    """Lowers the KL of the predictions by moving weights and slices of all layers together."""

    settings = AdamFit(updates=400, lr=0.005)
    shares_batches = True

    def fit(
        self, maps: Mapping[str, AsapAttention], scales: Mapping[str, Tensor], data: ModelData
    ) -> dict[str, float]:
        from asap_exp.calibration.prediction_fit import fit_end_to_end

        return fit_end_to_end(maps, scales, data, self.settings)
