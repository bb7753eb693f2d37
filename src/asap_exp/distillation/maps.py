"""One layer's map in closed form: slices chosen, weights by ridge; and its control."""

from dataclasses import dataclass

from torch import Tensor

from asap_exp.attention import AsapAttention
from asap_exp.config import CalibrationConfig
from asap_exp.distillation.ridge import NormalEquations, Solution
from asap_exp.distillation.selection import select_slices


@dataclass
class RidgeFit:
    """The normal equations of the chosen slices, on the fitted and on the held-out data."""

    equations: NormalEquations
    checks: NormalEquations
    solution: Solution
    features: slice
    """Those that the map has: all, or the slices without the query features."""
    control_solution: Solution
    """Of the query features alone."""

    @property
    def held_out_r_squared(self) -> Tensor:
        return self.checks.r_squared(self.solution.weight, self.features)

    def map(self, config: CalibrationConfig, eps: float) -> AsapAttention:
        weight, query_weight = self.solution.weight.float().tensor_split([config.slices], dim=1)
        return AsapAttention(
            self.equations.theta.clone(),
            weight.clone(),
            query_weight.clone() if config.query_features else None,
            refine=config.refine,
            eps=eps,
        )

    def control(self, config: CalibrationConfig, eps: float) -> AsapAttention:
        """The map with query features and no slices."""
        query_weight = self.control_solution.weight.float()
        return AsapAttention(
            self.equations.theta[:, :0].clone(),
            query_weight[:, :0].clone(),
            query_weight,
            refine=config.refine,
            eps=eps,
        )

    def scale(self) -> Tensor:
        """`[H, P]`: by how much a weight must move for f_hat to move as far as ridge misses it."""
        return self._scale(self.solution)

    def control_scale(self) -> Tensor:
        """The same of the control, which misses more: `[H, D + 1]`."""
        return self._scale(self.control_solution)[:, self.equations.theta.shape[1] :]

    def _scale(self, solution: Solution) -> Tensor:
        diagonal = self.equations.gram.diagonal(dim1=-2, dim2=-1)
        missed = self.equations.energy * (1 - solution.r_squared)
        known = (diagonal > 0) & (missed[:, None] > 0)
        # A constant feature or dual gives no scale, and its weight no gradient.
        return (missed[:, None] / diagonal).sqrt().where(known, 1.0).float()


def fit_ridge(
    equations: NormalEquations, checks: NormalEquations, config: CalibrationConfig
) -> RidgeFit:
    """On the best of the candidates where there are more of them than slices."""
    if config.candidates > config.slices:
        chosen = select_slices(
            equations, config.slices, query_features=config.query_features, ridge=config.ridge
        )
        equations, checks = equations.subset(chosen), checks.subset(chosen)
    features = slice(None) if config.query_features else slice(0, config.slices)
    return RidgeFit(
        equations,
        checks,
        equations.solve(features, config.ridge),
        features,
        equations.solve(slice(config.slices, None), config.ridge),
    )
