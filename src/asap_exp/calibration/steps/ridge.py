"""Ridge regression of the closure-ready dual on the map's features, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asap_exp.calibration.steps.base import StartStep, register

if TYPE_CHECKING:
    from asap_exp.calibration.config import CalibrationConfig
    from asap_exp.calibration.maps import RidgeFit
    from asap_exp.calibration.ridge import NormalEquations


@register("ridge")
class Ridge(StartStep):
    """The paper's regression, on the best of the candidate slices where there are more of them."""

    def fit(
        self, equations: NormalEquations, checks: NormalEquations, config: CalibrationConfig
    ) -> RidgeFit:
        from asap_exp.calibration.maps import fit_ridge

        return fit_ridge(equations, checks, config)
