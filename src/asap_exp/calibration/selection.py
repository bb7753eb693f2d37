"""Exact forward selection of slices among many candidates, on the normal equations."""

import torch
from torch import Tensor

from asap_exp.calibration.ridge import NormalEquations


def select_slices(
    equations: NormalEquations, slices: int, *, query_features: bool, ridge: float
) -> Tensor:
    """Return indices `[H, slices]` of candidates, each the one that explains most of the dual.

    Each is the one that lowers the ridge objective most beside those before it and, with
    `query_features`, beside the query features (orthogonal least squares: Chen, Billings and Luo,
    1989). All of it happens on the Gram matrix, so no activation is read again. What is
    regressed on beside those has no say.
    """
    gram, moment, _ = equations.normalised(ridge)
    heads, candidates, _ = equations.theta.shape
    row = torch.arange(heads, device=gram.device)
    if query_features:
        for feature in range(candidates, equations.query_features.stop):
            gram, moment = explained_by(gram, moment, row, torch.full_like(row, feature))
    free = torch.ones(heads, candidates, dtype=torch.bool, device=gram.device)
    chosen = []
    for _ in range(slices):
        diagonal = gram.diagonal(dim1=-2, dim2=-1)[:, :candidates]
        gain = moment[:, :candidates].square() / diagonal.clamp(min=ridge / 2)
        best = gain.masked_fill(~free, -1.0).argmax(dim=1)
        free[row, best] = False
        chosen.append(best)
        gram, moment = explained_by(gram, moment, row, best)
    return torch.stack(chosen, dim=1)


def explained_by(
    gram: Tensor, moment: Tensor, row: Tensor, feature: Tensor
) -> tuple[Tensor, Tensor]:
    """Gram matrix and moment of what is left of every feature beside `feature` `[H]`."""
    column = gram[row, :, feature]
    pivot = column[row, feature][:, None]
    left = gram - column[:, :, None] * column[:, None, :] / pivot[:, :, None]
    return left, moment - column * (moment[row, feature][:, None] / pivot)
