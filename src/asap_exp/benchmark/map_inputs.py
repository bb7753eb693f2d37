"""The map weights and duals that methods receive: random, or fitted to recorded inputs.

A kernel shifts sums over the logits by the given dual, and recomputes them if the dual was far off.
Recorded logits reach some hundreds, where a random dual is always far off.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from asap_exp.attention import LayerInputs, SinkhornAttention
from asap_exp.benchmark.inputs import Inputs
from asap_exp.benchmark.registry import Setting
from asap_exp.calibration.ridge import NormalEquations, random_slices
from asap_exp.calibration.selection import select_slices
from asap_exp.core.records.benchmark import TEACHER_UPDATES
from asap_exp.ops import sinkhorn_duals
from asap_exp.ops.reference.adaptive import COUNT

CANDIDATES = 64
"""Number of random slices from which a fitted map's slices are selected."""
RIDGE = 1e-6
FITTED_TOKENS = 2**14
"""Maximum number of tokens per head in a fit; at least one sample is used."""


class Weights(NamedTuple):
    """Weights of a map: `[H, L, D]`, `[H, L]`, `[H, D + 1]` and, if adaptive, `[H, 5, L]`."""

    theta: Tensor
    weight: Tensor
    query_weight: Tensor
    adaptive_weight: Tensor | None

    def of_heads(self, heads: slice) -> "Weights":
        return self.map(lambda x: x[heads])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Weights":
        adaptive = self.adaptive_weight
        return Weights(
            change(self.theta),
            change(self.weight),
            change(self.query_weight),
            None if adaptive is None else change(adaptive),
        )


class Duals(NamedTuple):
    """A row dual `[B, H, N]` and a key dual `[B, H, M]`, in logit units."""

    row: Tensor
    col: Tensor


def map_weights(setting: Setting, slices: int, *, adaptive: bool) -> Weights:
    """Return weights with query features: fitted to the recorded inputs, else small and random."""
    if setting.recorded is not None:
        return fitted_weights(setting.recorded, slices, adaptive=adaptive, seed=setting.seed)
    heads, width = setting.shape.heads, setting.shape.head_dim
    generator = torch.Generator().manual_seed(setting.seed)
    weights = Weights(
        random_slices(heads, slices, width, seed=setting.seed),
        torch.full((heads, slices), 1 / slices),
        0.01 * torch.randn(heads, width + 1, generator=generator),
        0.01 * torch.randn(heads, COUNT, slices, generator=generator) if adaptive else None,
    )
    return weights.map(lambda x: x.to(setting.device))


@torch.no_grad()
def fitted_weights(inputs: Inputs, slices: int, *, adaptive: bool, seed: int) -> Weights:
    """Fit weights by ridge on the first samples; slices are selected from `CANDIDATES` random ones.

    If the teacher has another number of heads, a head here is several of its heads in turn.
    """
    _, heads, n, width = inputs.q.shape
    samples = max(FITTED_TOKENS // n, 1)
    q, k, v = (x[:samples].float() for x in inputs.qkv)
    theta = random_slices(heads, max(CANDIDATES, slices), width, seed=seed).to(q.device)
    equations = NormalEquations(theta, adaptive=adaptive)
    equations.add(LayerInputs(q, k, v, None), SinkhornAttention(num_iters=TEACHER_UPDATES))
    chosen = select_slices(equations, slices, query_features=True, ridge=RIDGE)
    equations = equations.subset(chosen)
    solution = equations.solve(slice(None), RIDGE).weight.float()
    adaptive_weight = solution[:, equations.query_features.stop :]
    return Weights(
        equations.theta,
        solution[:, equations.potentials],
        solution[:, equations.query_features],
        adaptive_weight.unflatten(1, (COUNT, slices)) if adaptive else None,
    )


@torch.no_grad()
def given_duals(setting: Setting) -> Duals:
    """Return the teacher's duals of recorded inputs, else normal ones, equal for all samples."""
    if setting.recorded is not None:
        q, k, _ = setting.recorded.qkv
        duals = sinkhorn_duals(q, k, num_iters=TEACHER_UPDATES, backend=setting.backend)
        return Duals(duals.ready, duals.col)
    batch, heads, n, _ = setting.shape.size
    generator = torch.Generator().manual_seed(setting.seed)
    row = torch.randn(1, heads, n, generator=generator).to(setting.device).repeat(batch, 1, 1)
    return Duals(row, row)
