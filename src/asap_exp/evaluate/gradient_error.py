"""How far the gradient of a Sinkhorn teacher's last updates is from that of all of them.

The loss of some test samples is differentiated for all weights, once through all updates and once
through each number of the last ones (`attention.gradient_updates`), in float32 on the CPU. The
times are those of both passes; a first pass does not count. `scripts/gradient_error.py` runs it.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap_exp.attention import SinkhornAttention, attention_layers
from asap_exp.core.config import MovedData
from asap_exp.core.errors import UserError
from asap_exp.core.failures import sentences
from asap_exp.core.runs import Run
from asap_exp.data.loader import Batch
from asap_exp.data.run_data import run_data
from asap_exp.models import load_net


@dataclass(frozen=True)
class Row:
    """Error of the gradient through the last `updates`; None for the gradient through all."""

    updates: int | None
    relative: float
    """Norm of the difference from the exact gradient, in norms of that one."""
    cosine: float
    seconds: float


def main() -> None:
    """Print a row per number of updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a trained run")
    parser.add_argument("--updates", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    parser.add_argument("--samples", type=int, default=16, help="test samples of the loss")
    parser.add_argument("--data", help="folder of data sets, if it has moved")
    arguments = parser.parse_args()
    with sentences():
        found = rows(arguments.run, arguments.updates, arguments.samples, arguments.data)
        print("updates  relative error  cosine  seconds")
        for row in found:
            updates = "all" if row.updates is None else str(row.updates)
            print(f"{updates:>7}  {row.relative:14.4f}  {row.cosine:6.4f}  {row.seconds:7.2f}")


def rows(place: Path, updates: list[int], samples: int, root: str | None = None) -> Iterator[Row]:
    """Yield the exact gradient's row, then one per number of updates."""
    if samples < 1:
        raise UserError(f"--samples {samples} is not allowed; it must be at least 1")
    run, device = Run(place), torch.device("cpu")
    attention = run.config.attention
    if attention["name"] != SinkhornAttention.name:
        raise UserError(
            f"{place} was trained with attention={attention['name']}; give a run with "
            f"attention={SinkhornAttention.name}"
        )
    for number in updates:
        if not 1 <= number <= attention["num_iters"]:
            raise UserError(
                f"--updates {number} is not allowed; {place} makes {attention['num_iters']} updates"
            )
    data = run_data(run, MovedData(root=root, cache=None, path=None), samples, device)
    data.setup()
    net = load_net(run, device).eval().requires_grad_()
    batch = next(iter(data.test_dataloader()))
    gradient(net, batch, None)
    exact, seconds = gradient(net, batch, None)
    yield Row(None, 0.0, 1.0, seconds)
    for number in updates:
        found, seconds = gradient(net, batch, number)
        relative = (found - exact).norm() / exact.norm()
        yield Row(number, float(relative), float(F.cosine_similarity(found, exact, 0)), seconds)


def gradient(net: nn.Module, batch: Batch, updates: int | None) -> tuple[Tensor, float]:
    """Return the loss's gradient for all weights, as one vector, and the seconds it took."""
    for layer in attention_layers(net).values():
        attend = layer.attend
        assert isinstance(attend, SinkhornAttention)
        attend.gradient_updates = updates
    inputs, targets = batch
    start = time.perf_counter()
    loss = F.cross_entropy(net(inputs), targets)
    found = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
    seconds = time.perf_counter() - start
    return torch.cat([x.flatten() for x in found]).double(), seconds
