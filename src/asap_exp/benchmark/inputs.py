"""q, k, v and the gradient of the output: random, or recorded in a trained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asap_exp.attention.diagnostics import largest_logit
from asap_exp.benchmark.blocks import in_blocks
from asap_exp.benchmark.recorded import recorders
from asap_exp.benchmark.shape import Shape
from asap_exp.core.config import BenchmarkConfig, SuiteConfig
from asap_exp.core.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """Inputs `[batch, heads, n, head_dim]` of a timed call, on its device and in its dtype.

    Without `grad_out`, only the forward pass is timed.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor | None = None

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    def first(self, batch: int) -> "Inputs":
        """Return the first `batch` samples, as leaves with gradients of their own."""
        return self if batch == len(self.q) else self._map(lambda x: x[:batch])

    def exact(self, place: "Place") -> "Inputs":
        """Return the heads of one sample in float64, as leaves with gradients of their own."""
        return self._map(lambda x: place.of(x).double())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        q, k, v = (change(x.detach()).requires_grad_(x.requires_grad) for x in self.qkv)
        return Inputs(q, k, v, None if self.grad_out is None else change(self.grad_out))


@dataclass(frozen=True)
class Place:
    """Selected heads of one sample."""

    sample: int
    heads: slice

    def of(self, x: Tensor) -> Tensor:
        return x[self.sample : self.sample + 1, self.heads]


Draw = Callable[[Shape, torch.Generator], Sequence[Tensor]]


@dataclass(frozen=True)
class Source:
    """A source of q, k and v; `identity` describes it in the record."""

    identity: dict[str, Any]
    draw: Draw
    refusal: Callable[[int], str | None] = lambda n: None
    """Function that returns why n tokens have no inputs, or None if they have."""
    n: int | None = None
    """Number of tokens of its inputs; None for any."""

    def inputs(
        self, shape: Shape, *, device: torch.device, dtype: torch.dtype, seed: int, train: bool
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (x.to(device, dtype).requires_grad_(train) for x in self.draw(shape, generator))
        grad_out = normal(shape, generator).to(device, dtype) if train else None
        return Inputs(q, k, v, grad_out)


def input_source(config: BenchmarkConfig, suite: SuiteConfig, device: torch.device) -> Source:
    if config.inputs == "recorded":
        return recorded_source(config, suite, device)
    return Source({"kind": "random"}, lambda shape, g: [normal(shape, g) for _ in range(3)])


def normal(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape.size, generator=generator)


def recorded_source(config: BenchmarkConfig, suite: SuiteConfig, device: torch.device) -> Source:
    *_, found = recorders(config, device)
    identity = found.identity
    if found.head_dim != suite.head_dim:
        raise UserError(
            f"{suite_name(device)}.head_dim={suite.head_dim} differs from {found.run.path}; "
            f"set {suite_name(device)}.head_dim={found.head_dim}"
        )
    resized = [n for n in suite.n if found.resized(n)]
    if resized:
        identity["resized"] = {"tokens": found.n, "to": resized}
    identity["maps"] = "fitted"
    return Source(identity, lambda shape, _: found.draw(shape), found.refusal, found.n)


def suite_name(device: torch.device) -> str:
    """Return the part of the configuration that applies to this device: `gpu` or `cpu`."""
    return "gpu" if device.type == "cuda" else "cpu"


def largest_logit_of(inputs: Inputs) -> float:
    """Return max |S_ij|, computed in blocks since all plans at once may not fit in memory."""

    def rows(q: Tensor, k: Tensor) -> Tensor:
        return in_blocks(lambda part: largest_logit(part, k)[None, :, None], q, k.shape[2])

    with torch.no_grad():
        pairs = zip(inputs.q.split(1), inputs.k.split(1), strict=True)
        return torch.stack([rows(q, k).max() for q, k in pairs]).max().item()
