"""Inputs of the attention layers of a trained teacher, at its own length and others."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap_exp.attention import attention_layers
from asap_exp.benchmark.shape import Shape
from asap_exp.calibration.capture import layer_inputs, sinkhorn
from asap_exp.calibration.data import Batches
from asap_exp.core.config import BenchmarkConfig, ImageTrainConfig
from asap_exp.core.runs import Run
from asap_exp.data.run_data import CALIBRATION_SPLIT, check_same_data, run_data
from asap_exp.models import build_net, load_net
from asap_exp.models.init_from import initialise
from asap_exp.models.teachers import find_teacher

RECORDED_SAMPLES = 256
"""Number of samples recorded; they are repeated if a row needs more."""


@dataclass(frozen=True)
class Recorder:
    """Training samples of a teacher, and the inputs of an attention layer for them.

    Texts are cut to fewer tokens. For another square number of patches, images are resized and the
    teacher's position embeddings interpolated.
    """

    run: Run
    samples: Batches
    device: torch.device
    path: str
    """Path of the layer."""
    own: tuple[Tensor, Tensor, Tensor]
    """Tensors q, k and v `[heads of all samples, n, head_dim]` at the teacher's own length."""
    source: dict[str, Any]
    """How many samples there are, and of which data."""

    @property
    def identity(self) -> dict[str, Any]:
        """The description of the inputs in a benchmark's record."""
        return {
            "kind": "recorded",
            "teacher": self.run.name,
            "teacher_sha256": self.run.manifest.teacher_sha256,
            "layer": self.path,
            "split": CALIBRATION_SPLIT,
            **self.source,
        }

    @property
    def n(self) -> int:
        return self.own[0].shape[1]

    @property
    def heads(self) -> int:
        """Heads of a sample."""
        return len(self.own[0]) // self.source["images"]

    @property
    def head_dim(self) -> int:
        return self.own[0].shape[2]

    def refusal(self, n: int) -> str | None:
        """Return why there are no inputs of n tokens, or None if there are."""
        if self.is_of_images:
            has, others = math.isqrt(n) ** 2 == n, ", or any square number if images are resized"
        else:
            has, others = n < self.n, " or fewer"
        if has or n == self.n:
            return None
        return f"n = {n} is left out: the teacher's inputs have {self.n} tokens{others}"

    def resized(self, n: int) -> bool:
        """Return whether images are resized for n tokens."""
        return n != self.n and self.refusal(n) is None and self.is_of_images

    @property
    def is_of_images(self) -> bool:
        return not self.run.config.lengths_vary

    def draw(self, shape: Shape) -> list[Tensor]:
        """Return q, k and v of that shape; samples and heads are repeated if there are too few."""
        parts = self.own
        if self.resized(shape.n):
            parts = self._of_resized_images(shape)
        return [tiled(x[:, : shape.n], shape) for x in parts]

    def _of_resized_images(self, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
        config = self.run.config
        assert isinstance(config, ImageTrainConfig)
        size = math.isqrt(shape.n) * config.model.patch_size
        net = build_net(replace(config, data=replace(config.data, image_size=size)))
        initialise(net, self.run)
        images = Resized(self.samples, size, min(shape.batch, RECORDED_SAMPLES))
        precision = config.trainer.precision
        return recorded(net.to(self.device).eval(), images, precision)[self.path]


@dataclass(frozen=True)
class Resized:
    """The first `rows` images of a loader's only batch, resized to `size`."""

    samples: Batches
    size: int
    rows: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.samples:
            few = images[: self.rows]
            size = (self.size, self.size)
            yield F.interpolate(few, size, mode="bicubic", antialias=True), labels[: self.rows]

    def __len__(self) -> int:
        return len(self.samples)


def recorders(config: BenchmarkConfig, device: torch.device) -> list[Recorder]:
    """Return a recorder of each attention layer of the teacher that `config` names, in their order.

    q is divided by the teacher's eps, so that the logits are the teacher's at eps = 1. The longest
    texts are used, cut to the shortest of them, so that nothing is padded.
    """
    run = find_teacher(config.paths, config.task.name, config.teacher)
    net = load_net(run, device)
    data = run_data(run, config.data, RECORDED_SAMPLES, device)
    data.setup()
    check_same_data(data, run)
    samples, _ = data.calibration_dataloaders(
        samples=RECORDED_SAMPLES, holdout=0, batch_size=RECORDED_SAMPLES, seed=config.seed
    )
    identity = {"images": samples.num_samples, "data": data.identity}
    own = recorded(net, samples, run.config.trainer.precision)
    return [Recorder(run, samples, device, path, x, identity) for path, x in own.items()]


def recorded(
    net: nn.Module, batches: Batches, precision: str
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return q, k, v `[heads of all samples, n, head_dim]` of all layers for the last batch."""
    *_, last = layer_inputs(net, batches, precision)
    found = {}
    for path, layer in attention_layers(net).items():
        inputs = last[path][-1]
        mask, n = inputs.key_padding_mask, inputs.q.shape[2]
        if mask is not None:
            n = int((~mask).sum(dim=1).min())
        scaled = inputs.q / sinkhorn(layer).eps, inputs.k, inputs.v
        q, k, v = (x[:, :, :n].flatten(0, 1) for x in scaled)
        found[path] = q, k, v
    return found


def tiled(x: Tensor, shape: Shape) -> Tensor:
    """Repeat or cut `x` `[heads of all samples, n, head_dim]` to the shape."""
    wanted = shape.batch * shape.heads
    copies = -(-wanted // len(x))
    return x.repeat(copies, 1, 1)[:wanted].reshape(shape.size)
