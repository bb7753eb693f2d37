"""q, k, v and the gradient of the output: random, or recorded in a trained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asap_exp.attention import attention_layers
from asap_exp.attention.diagnostics import largest_logit
from asap_exp.benchmarking.shape import Shape
from asap_exp.config import BenchmarkConfig, TextTrainConfig
from asap_exp.distillation.capture import layer_inputs
from asap_exp.distillation.compile import CALIBRATION_SPLIT, check_same_data, run_data, sinkhorn
from asap_exp.errors import UserError
from asap_exp.models import load_net
from asap_exp.runs import find_teacher

RECORDED_SAMPLES = 256
"""Repeated where a row needs more samples."""


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
    n: int | None = None
    """How many tokens this source has; None for any number."""
    may_be_cut: bool = False
    """Whether the first tokens alone are inputs too, as of a text."""

    def refusal(self, shape: Shape) -> str | None:
        """Why a row of this shape has no inputs, or None if it has."""
        if self.n in (None, shape.n) or (self.may_be_cut and shape.n < self.n):
            return None
        return f"n = {shape.n} is left out: the teacher's inputs have {self.n} tokens"

    def inputs(
        self, shape: Shape, *, device: torch.device, dtype: torch.dtype, seed: int, train: bool
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (x.to(device, dtype).requires_grad_(train) for x in self.draw(shape, generator))
        grad_out = normal(shape, generator).to(device, dtype) if train else None
        return Inputs(q, k, v, grad_out)


def input_source(config: BenchmarkConfig, head_dim: int, device: torch.device) -> Source:
    if config.inputs == "recorded":
        return recorded_source(config, head_dim, device)
    return Source({"kind": "random"}, lambda shape, g: [normal(shape, g) for _ in range(3)])


def normal(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape.size, generator=generator)


def recorded_source(config: BenchmarkConfig, head_dim: int, device: torch.device) -> Source:
    """What the last attention layer of a trained teacher receives, on training samples.

    q is divided by the teacher's eps, so that logits are the teacher's at eps = 1. Of texts, the
    longest of them are taken, cut to the shortest of these: nothing is padded.
    """
    run = find_teacher(config.paths, config.task.name, config.teacher)
    net = load_net(run, device)
    data = run_data(run, config.data.root, config.data.cache, RECORDED_SAMPLES, device)
    data.setup()
    check_same_data(data, run)
    samples, _ = data.calibration_dataloaders(
        samples=RECORDED_SAMPLES, holdout=0, batch_size=RECORDED_SAMPLES, seed=config.seed
    )
    path, layer = list(attention_layers(net).items())[-1]
    teacher = sinkhorn(layer)
    *_, last = layer_inputs(net, samples, run.config.trainer.precision)
    recorded = last[path]
    mask, (n, width) = recorded.key_padding_mask, recorded.q.shape[2:]
    if mask is not None:
        n = int((~mask).sum(dim=1).min())
    if width != head_dim:
        raise UserError(
            f"{suite_name(device)}.head_dim={head_dim} is not that of {run.path}; "
            f"give {suite_name(device)}.head_dim={width}"
        )
    parts = (recorded.q / teacher.eps, recorded.k, recorded.v)
    heads = [x[:, :, :n].flatten(0, 1) for x in parts]
    identity = {
        "kind": "recorded",
        "teacher": run.name,
        "teacher_sha256": run.manifest["teacher_sha256"],
        "layer": path,
        "split": CALIBRATION_SPLIT,
        "images": samples.rows,
        "data": data.identity,
    }
    return Source(
        identity,
        lambda shape, _: [tiled(x[:, : shape.n], shape) for x in heads],
        n,
        may_be_cut=isinstance(run.config, TextTrainConfig),
    )


def tiled(x: Tensor, shape: Shape) -> Tensor:
    """`[heads of all samples, n, head_dim]` repeated or cut to the shape."""
    wanted = shape.batch * shape.heads
    copies = -(-wanted // len(x))
    return x.repeat(copies, 1, 1)[:wanted].reshape(shape.size)


def suite_name(device: torch.device) -> str:
    """The part of the configuration that is read on this device."""
    return "gpu" if device.type == "cuda" else "cpu"


def largest_logit_of(inputs: Inputs) -> float:
    """max |S_ij|, sample by sample: all plans at once need not fit."""
    with torch.no_grad():
        pairs = zip(inputs.q.split(1), inputs.k.split(1), strict=True)
        return torch.stack([largest_logit(q, k).max() for q, k in pairs]).max().item()
