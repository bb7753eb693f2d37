"""Closed-form map of one layer: selected slices, ridge weights; and its control."""

from dataclasses import dataclass

import torch
from torch import Tensor

from asap_exp.attention import AsapAttention
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.ridge import NormalEquations, Solution
from asap_exp.calibration.selection import select_slices
from asap_exp.ops import SlicedMap


@dataclass
class RidgeFit:
    """The normal equations of the chosen slices, on the fitted and on the held-out data."""

    equations: NormalEquations
    checks: NormalEquations
    solution: Solution
    features: slice
    """Blocks of the map: all of them, slices and query features, or slices alone."""
    control_solution: Solution
    """Solution for the query features alone."""

    @property
    def held_out_r_squared(self) -> Tensor:
        return self.checks.r_squared(self.solution.weight, self.features)

    def map(self, config: CalibrationConfig, eps: float) -> AsapAttention:
        equations = self.equations
        map = SlicedMap.of(
            {
                "theta": equations.theta.clone(),
                **equations.weights(self.solution.weight.float()),
                "relaxation": self.relaxation(config),
                "coarse": equations.coarse,
                "one_pass": equations.one_pass,
            }
        )
        return AsapAttention.of(map, refine=config.refine, eps=eps)

    def control(self, config: CalibrationConfig, eps: float) -> AsapAttention:
        """Return the map with query features and no slices."""
        query_weight = self.control_solution.weight.float()
        return AsapAttention(
            self.equations.theta[:, :0].clone(),
            query_weight[:, :0].clone(),
            query_weight,
            relaxation=self.relaxation(config),
            refine=config.refine,
            eps=eps,
            one_pass=self.equations.one_pass,
        )

    def relaxation(self, config: CalibrationConfig) -> Tensor | None:
        """Return the relaxation of plain updates, from which the gradient steps start: `[H]`."""
        weight = self.control_solution.weight
        return weight.new_ones(len(weight), dtype=torch.float32) if config.relaxes else None

    def scale(self) -> Tensor:
        """`[H, P]`: by how much a weight must move for f_hat to move as far as ridge misses it."""
        return self._scale(self.solution)

    def control_scale(self) -> Tensor:
        """Return the same for the control, which leaves out more: `[H, D + 1]`."""
        return self._scale(self.control_solution)[:, self.equations.query_features]

    def _scale(self, solution: Solution) -> Tensor:
        diagonal = self.equations.gram.diagonal(dim1=-2, dim2=-1)
        missed = self.equations.energy * (1 - solution.r_squared)
        known = (diagonal > 0) & (missed[:, None] > 0)
        # A constant feature or dual gives no scale, and its weight no gradient.
        return (missed[:, None] / diagonal).sqrt().where(known, 1.0).float()


def fit_ridge(
    equations: NormalEquations, checks: NormalEquations, config: CalibrationConfig
) -> RidgeFit:
    """Fit the map on the best candidates, if there are more candidates than slices."""
    if equations.theta.shape[1] > config.slices:
        chosen = select_slices(
            equations, config.slices, query_features=config.query_features, ridge=config.ridge
        )
        equations, checks = equations.subset(chosen), checks.subset(chosen)
    features = slice(None) if config.query_features else equations.potentials
    return RidgeFit(
        equations,
        checks,
        equations.solve(features, config.ridge),
        features,
        equations.solve(equations.query_features, config.ridge),
    )
