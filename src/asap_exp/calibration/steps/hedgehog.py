"""Feature maps fitted to a softmax teacher's plans: Hedgehog's attention distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asap_exp.calibration.steps.base import AdamFit, ImitationData, ImitationStep, register

if TYPE_CHECKING:
    from asap_exp.attention.learned import LearnedAttention


@register("hedgehog")
class Hedgehog(ImitationStep):
    """Lowers the cross-entropy of a softmax teacher's plans and those of linear attention.

    Source: The Hedgehog & the Porcupine, arXiv 2402.04347; every other weight stays as it is.
    """

    teacher = "softmax"
    attention = "hedgehog"
    settings = AdamFit(updates=500, lr=0.01)
    shares_batches = True

    def fit(self, attend: LearnedAttention, data: ImitationData) -> None:
        from asap_exp.calibration.imitation import fit_imitation

        fit_imitation(attend, data, self.settings)
