"""q, k, v and the gradient of the output: random, or recorded in a trained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asap_exp.attention.diagnostics import largest_logit
from asap_exp.benchmark.recorded import recorder
from asap_exp.benchmark.shape import Shape
from asap_exp.core.config import BenchmarkConfig, SuiteConfig
from asap_exp.core.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """`[batch, heads, n, head_dim]` each, on the device and in the dtype that is timed.

    Without `grad_out` the forward pass alone is timed.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor | None = None

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    def first(self, batch: int) -> "Inputs":
        """The first `batch` samples, with gradients of their own."""
        return self if batch == len(self.q) else self._map(lambda x: x[:batch])

    def exact(self, place: "Place") -> "Inputs":
        """One sample's heads in float64, with gradients of their own."""
        return self._map(lambda x: place.of(x).double())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        q, k, v = (change(x.detach()).requires_grad_(x.requires_grad) for x in self.qkv)
        return Inputs(q, k, v, None if self.grad_out is None else change(self.grad_out))


@dataclass(frozen=True)
class Place:
    """Some heads of one sample."""

    sample: int
    heads: slice

    def of(self, x: Tensor) -> Tensor:
        return x[self.sample : self.sample + 1, self.heads]


Draw = Callable[[Shape, torch.Generator], Sequence[Tensor]]


@dataclass(frozen=True)
class Source:
    """Where q, k and v come from; `identity` is what the record says of it."""

    identity: dict[str, Any]
    draw: Draw
    refusal: Callable[[int], str | None] = lambda n: None
    """Why a row of n tokens has no inputs, or None if it has."""
    n: int | None = None
    """A number of tokens that it has; None for any."""

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
    found, identity = recorder(config, device)
    if found.head_dim != suite.head_dim:
        raise UserError(
            f"{suite_name(device)}.head_dim={suite.head_dim} is not that of {found.run.path}; "
            f"give {suite_name(device)}.head_dim={found.head_dim}"
        )
    resized = [n for n in suite.n if found.resized(n)]
    if resized:
        identity["resized"] = {"tokens": found.n, "to": resized}
    identity["maps"] = "fitted"
    return Source(identity, lambda shape, _: found.draw(shape), found.refusal, found.n)


def suite_name(device: torch.device) -> str:
    """The part of the configuration that is read on this device."""
    return "gpu" if device.type == "cuda" else "cpu"


def largest_logit_of(inputs: Inputs) -> float:
    """max |S_ij|, sample by sample: all plans at once need not fit."""
    with torch.no_grad():
        pairs = zip(inputs.q.split(1), inputs.k.split(1), strict=True)
        return torch.stack([largest_logit(q, k).max() for q, k in pairs]).max().item()
