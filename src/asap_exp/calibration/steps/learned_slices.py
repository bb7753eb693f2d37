"""KL between plans, over the weights and the slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asap_exp.calibration.steps.base import AdamFit, LayerData, LayerStep, register

if TYPE_CHECKING:
    from torch import Tensor

    from asap_exp.attention import AsapAttention


@register("learned_slices")
class LearnedSlices(LayerStep):
    """Lowers KL(teacher's plan || map's plan) by moving the weights and the slices."""

    settings = AdamFit(updates=500, lr=0.05)
    shares_batches = True

    def fit(self, attend: AsapAttention, scale: Tensor, data: LayerData) -> None:
        from asap_exp.calibration.plan_fit import fit_plans

        fit_plans(attend, scale, data, self.settings, slices=True)
