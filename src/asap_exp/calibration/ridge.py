"""The ridge fit of the sliced dual map: streaming normal equations in float64, one a head.

Features are the sliced potentials, behind them the centred query features, and behind these, where
the map is to have them, the adaptive and logit features and the coarse dual; the target is the
closure-ready dual f^{T-1}, centred (ASAP, arXiv 2605.12879, its linear regression). Of a map of one
pass they are the features of the keys, and the target is g^T.
"""

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asap_exp.attention import LayerInputs, SinkhornAttention
from asap_exp.calibration.kl import plan_of
from asap_exp.core.agreement import alone, num_ranks, of_rank
from asap_exp.ops import CoarseSettings, map_features, sliced_potentials
from asap_exp.ops.features import FEATURES

POTENTIALS = "potentials"
MOST_FEATURES = 2**26
"""Numbers at a time, half a GiB of them: texts of a batch may have ten times as many."""


@dataclass
class Solution:
    """`weight` `[H, P]` for the chosen features, condition number and R^2 `[H]`, all float64."""

    weight: Tensor
    condition: Tensor
    r_squared: Tensor


QUERY = "query_features"
"""The features that stand in every fit, since the control has no others."""


def feature_blocks(names: Collection[str], slices: int, head_dim: int) -> dict[str, slice]:
    """Position of each kind of feature among all features of a head, by name.

    The potentials come first, then the query features, which have a place always, then the other
    ones among `names`.
    """
    chosen = [feature for feature in FEATURES.values() if feature.name in (QUERY, *names)]
    counts = [slices, *(feature.total(slices, head_dim) for feature in chosen)]
    ends = [0, *itertools.accumulate(counts)]
    places = (slice(*ends_of) for ends_of in itertools.pairwise(ends))
    return dict(zip((POTENTIALS, *(feature.name for feature in chosen)), places, strict=True))


SUMS = ("gram", "moment", "energy")
"""Sums of the normal equations."""


def exactly(total: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum of two tensors, and what rounding has lost of it, without an error.

    Knuth, The Art of Computer Programming 2, 4.2.2, theorem B.
    """
    added = total + more
    second = added - total
    return added, (total - (added - second)) + (more - second)


class NormalEquations:
    """G = sum Phi Phi^T `[H, P, P]`, r = sum Phi f `[H, P]`, F = sum f^2 `[H]`, in float64.

    Sums over samples and valid tokens; `blocks` says where each kind of features stands among the
    P. What a sum of batches loses to rounding is summed beside it, so that sums do not depend on
    the order of the batches, nor on which rank has which: a map that is fitted to layers with maps
    before it would multiply such a difference.
    """

    def __init__(
        self,
        theta: Tensor,
        features: Collection[str] = (),
        coarse: CoarseSettings | None = None,
        *,
        one_pass: bool = False,
    ) -> None:
        """`theta` `[H, L, D]`: the slices, at unit norm; `features` beside the query's own.

        `coarse` are the settings of the feature of that name.
        """
        heads, slices, head_dim = theta.shape
        self.theta, self.coarse, self.one_pass = theta, coarse, one_pass
        self.blocks = feature_blocks(features, slices, head_dim)
        *_, last = self.blocks.values()
        zeros = partial(torch.zeros, dtype=torch.float64, device=theta.device)
        self.gram = zeros(heads, last.stop, last.stop)
        self.moment = zeros(heads, last.stop)
        self.energy = zeros(heads)
        self._lost = {name: torch.zeros_like(getattr(self, name)) for name in SUMS}

    @property
    def features(self) -> list[str]:
        """The kinds of features in their order, without the potentials."""
        return list(self.blocks)[1:]

    @property
    def potentials(self) -> slice:
        return self.blocks[POTENTIALS]

    @property
    def query_features(self) -> slice:
        return self.blocks[QUERY]

    def add(self, inputs: LayerInputs, teacher: SinkhornAttention) -> None:
        """Add what one call of the teacher's layer received."""
        heads, features, _ = self.gram.shape
        a_sample = heads * features * inputs.q.shape[2]
        samples = max(MOST_FEATURES // a_sample, 1)
        for first in range(0, len(inputs.q), samples):
            self._add(inputs.of_samples(slice(first, first + samples)), teacher)

    def reduce(self) -> None:
        """Add what the other ranks have added, and what rounding has lost, in place."""
        for name, lost in self._lost.items():
            mine = getattr(self, name)
            if not alone():
                total, found = torch.zeros_like(mine), torch.zeros_like(lost)
                for rank in range(num_ranks()):
                    total, more = exactly(total, of_rank(mine, rank))
                    found += more + of_rank(lost, rank)
                mine, lost = total, found
            setattr(self, name, mine + lost)
        self._lost = {name: torch.zeros_like(getattr(self, name)) for name in SUMS}

    def _sum(self, name: str, more: Tensor) -> None:
        total, lost = exactly(getattr(self, name), more)
        self._lost[name] += lost
        setattr(self, name, total)

    def _add(self, inputs: LayerInputs, teacher: SinkhornAttention) -> None:
        q, k, _, mask = inputs
        options: dict[str, Any] = {"eps": teacher.eps, "key_padding_mask": mask}
        sides = (k, q) if self.one_pass else (q, k)
        phi = sliced_potentials(*sides, self.theta, **options)
        options |= {"coarse": self.coarse, "of_keys": self.one_pass}
        parts = [phi, *map_features(q, k, self.theta, self.features, phi=phi, **options)]
        features = torch.cat(parts, dim=2).double()
        dual = teacher.ready_dual(q, k, key_padding_mask=mask)
        if self.one_pass:
            _, _, dual = plan_of(q, k, dual, mask, teacher.eps)
        dual = centred(dual.double(), mask)
        self._sum("gram", torch.einsum("bhpn,bhrn->hpr", features, features))
        self._sum("moment", torch.einsum("bhpn,bhn->hp", features, dual))
        self._sum("energy", dual.square().sum(dim=(0, 2)))

    def subset(self, chosen: Tensor) -> "NormalEquations":
        """Return the equations of the slices `chosen` `[H, L]` and of features without slices."""
        heads, slices, head_dim = self.theta.shape
        theta = self.theta.gather(1, chosen[:, :, None].expand(-1, -1, head_dim))
        result = NormalEquations(theta, self.features, self.coarse, one_pass=self.one_pass)
        index = torch.arange(self.gram.shape[1], device=chosen.device)
        parts = [chosen]
        for name in self.features:
            block = index[self.blocks[name]]
            if FEATURES[name].per_slice:
                parts.append((block[::slices][:, None] + chosen[:, None, :]).flatten(1))
            else:
                parts.append(block.expand(heads, -1))
        kept = torch.cat(parts, dim=1)
        rows = self.gram.gather(1, kept[:, :, None].expand(-1, -1, self.gram.shape[2]))
        result.gram = rows.gather(2, kept[:, None, :].expand(-1, kept.shape[1], -1))
        result.moment = self.moment.gather(1, kept)
        result.energy = self.energy
        return result

    def weights(self, solution: Tensor) -> dict[str, Tensor]:
        """Return a solution for the first blocks as weights of a map, by field of `SlicedMap`."""
        heads, slices, head_dim = self.theta.shape
        found = {"weight": solution[:, self.potentials]}
        for name in self.features:
            block, feature = self.blocks[name], FEATURES[name]
            if block.stop <= solution.shape[1]:
                shape = feature.shape(heads, slices, head_dim)
                found[feature.weight] = solution[:, block].reshape(shape)
        return {name: weight.clone() for name, weight in found.items()}

    def solve(self, features: slice, ridge: float) -> Solution:
        """(D^-1 G D^-1 + ridge I) u = D^-1 r, weight = D^-1 u, with D = diag(G)^(1/2).

        By eigenvalues, which give the condition too: torch.linalg.solve of several matrices of
        some hundred rows never ends on several threads of a CPU (torch 2.15, oneMKL).
        """
        normalised, moment, diagonal = self.normalised(ridge)
        values, vectors = torch.linalg.eigh(normalised[:, features, features])
        values = values.clamp(min=ridge / 2)  # no less than ridge but for rounding
        u = vectors @ (vectors.mT @ moment[:, features, None] / values[..., None])
        weight = u[..., 0] / diagonal[:, features]
        condition = values[:, -1] / values[:, 0]
        return Solution(weight, condition, self.r_squared(weight, features))

    def normalised(self, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        """D^-1 G D^-1 + ridge I, D^-1 r, and D = diag(G)^(1/2) `[H, P]`, 1 where that is 0."""
        diagonal = self.gram.diagonal(dim1=-2, dim2=-1).sqrt()
        diagonal = torch.where(diagonal > 0, diagonal, 1.0)
        identity = torch.eye(self.gram.shape[-1], dtype=self.gram.dtype, device=self.gram.device)
        gram = self.gram / (diagonal[:, :, None] * diagonal[:, None, :]) + ridge * identity
        return gram, self.moment / diagonal, diagonal

    def r_squared(self, weight: Tensor, features: slice) -> Tensor:
        """(2 w^T r - w^T G w) / F `[H]`; NaN where the dual is constant (F = 0)."""
        gram, moment = self.gram[:, features, features], self.moment[:, features]
        explained = 2 * (weight * moment).sum(dim=-1)
        explained = explained - torch.einsum("hp,hpr,hr->h", weight, gram, weight)
        return explained / self.energy


def centred(dual: Tensor, mask: Tensor | None) -> Tensor:
    """`dual` `[B, H, N]` minus its mean over the valid tokens; 0 at padded places."""
    if mask is None:
        return dual - dual.mean(dim=-1, keepdim=True)
    valid = ~mask[:, None, :]
    mean = (dual * valid).sum(dim=-1, keepdim=True) / valid.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(valid, dual - mean, 0.0)


def random_slices(heads: int, slices: int, head_dim: int, *, seed: int) -> Tensor:
    """Directions uniform on the sphere, `[H, L, D]` float32 at unit norm."""
    generator = torch.Generator().manual_seed(seed)
    shape = (heads, slices, head_dim)
    theta = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return torch.nn.functional.normalize(theta, dim=-1)
