"""How far cheaper gradients of a Sinkhorn teacher are from the exact one, and what they cost.

The loss of some test samples is differentiated for all weights, in float32 on the CPU: exactly,
through the last updates alone (`attention.gradient_updates`), implicitly
(`attention.implicit_steps`), and with other attentions in the layers' place, which have other plans
too. The time of a forward and a backward pass is relative to the exact one's: the median ratio of
passes in turns. Memory is the peak of a further pass. `scripts/gradient_error.py` runs it.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from asap_exp.attention import SinkhornAttention, attention_layers
from asap_exp.attention.diagnostics import column_error
from asap_exp.attention.recording import record_inputs
from asap_exp.attention.swapping import fill_attention
from asap_exp.calibration.prediction_fit import divergence
from asap_exp.core.attention_options import check_attention, options_of
from asap_exp.core.config import MovedData
from asap_exp.core.errors import UserError
from asap_exp.core.failures import sentences
from asap_exp.core.runs import Run
from asap_exp.data.loader import Batch
from asap_exp.data.run_data import run_data
from asap_exp.models import load_net, tokens_of_images
from asap_exp.timing.memory import peak_memory

COLUMNS = ("relative error", "cosine", "KL", "column error", "time", "MiB")


@dataclass(frozen=True)
class Row:
    """Errors of one attention's gradient and plans, and what they cost."""

    words: str
    relative: float
    """Norm of the difference from the exact gradient, in norms of that one."""
    cosine: float
    kl: float
    """Divergence of the predictions from the teacher's, in nats."""
    column_error: float
    """Mean over keys, heads and layers of |column sum - n/m| m/n."""
    time: float
    """Share of the exact gradient's time."""
    mib: float

    @property
    def cells(self) -> list[str]:
        formats = ("{:.4f}", "{:.4f}", "{:.4f}", "{:.3f}", "{:.2f}", "{:.0f}")
        numbers = (
            self.relative, self.cosine, self.kl, self.column_error, self.time, self.mib
        )  # fmt: skip
        return [form.format(number) for form, number in zip(formats, numbers, strict=True)]


def main() -> None:
    """Print a row per attention."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a trained run")
    parser.add_argument(
        "--updates", type=int, nargs="*", default=[1, 2, 3, 5, 10], help="last updates"
    )
    parser.add_argument("--implicit", type=int, nargs="*", default=[1, 2, 3, 5], help="steps")
    parser.add_argument(
        "--attention",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "OPTION=VALUE"),
        help="an attention in the layers' place, by default with their T and eps",
    )
    parser.add_argument("--samples", type=int, default=16, help="test samples of the loss")
    parser.add_argument("--passes", type=int, default=3, help="pairs of timed passes")
    parser.add_argument("--data", help="folder of data sets, if it has moved")
    arguments = parser.parse_args()
    with sentences():
        cases = [
            *({"gradient_updates": number} for number in arguments.updates),
            *({"implicit_steps": number} for number in arguments.implicit),
            *(given(name, words) for name, *words in arguments.attention),
        ]
        found = rows(
            arguments.run, cases, arguments.samples, arguments.data, passes=arguments.passes
        )
        print(f"{'attention':48}", *(f"{name:>14}" for name in COLUMNS))
        for row in found:
            print(f"{row.words:48}", *(f"{cell:>14}" for cell in row.cells), flush=True)


def given(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the options of an attention from words like tokens=8."""
    for word in words:
        if "=" not in word:
            raise UserError(f"--attention {name} {word} is not allowed; write {word}=VALUE")
    options = OmegaConf.from_dotlist(list(words))
    return {"name": name, **{str(option): value for option, value in options.items()}}


def rows(
    place: Path,
    cases: Sequence[Mapping[str, Any]],
    samples: int,
    root: str | None = None,
    *,
    passes: int = 1,
) -> Iterator[Row]:
    """Yield the exact gradient's row, then one per case: options of an attention.

    Without a name they are options of the teacher's.
    """
    for name, value in (("samples", samples), ("passes", passes)):
        if value < 1:
            raise UserError(f"--{name} {value} is not allowed; it must be at least 1")
    run, device = Run(place), torch.device("cpu")
    teacher = dict(run.config.attention)
    if teacher["name"] != SinkhornAttention.name:
        raise UserError(
            f"{place} was trained with attention={teacher['name']}; give a run with "
            f"attention={SinkhornAttention.name}"
        )
    configs = [attention_of(teacher, case) for case in cases]
    data = run_data(run, MovedData(root=root, cache=None, path=None), samples, device)
    data.setup()
    net = load_net(run, device).eval().requires_grad_()
    batch = next(iter(data.test_dataloader()))
    usual = attention_of(teacher, {})
    exact = measured(net, batch, usual)
    yield row_of("exact", exact, exact, 1.0)
    for case, config in zip(cases, configs, strict=True):
        words = ", ".join(f"{key}={value}" for key, value in case.items() if key != "name")
        words = " ".join(filter(None, (case.get("name"), words)))
        ratios = (seconds(net, batch, config) / seconds(net, batch, usual) for _ in range(passes))
        time_ratio = statistics.median(ratios)
        yield row_of(words, measured(net, batch, config), exact, time_ratio)


def attention_of(teacher: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attention of a case, by default with the teacher's T and eps.

    UserError if an option is not allowed.
    """
    name = case.get("name", teacher["name"])
    own: dict[str, Any] = {
        key: teacher[key] for key in ("num_iters", "eps") if key in options_of(name)
    }
    config = {"name": name, **own, **case}
    check_attention(config)
    return config


@dataclass(frozen=True)
class Measured:
    """A gradient for all weights, as one vector, the predictions, and what was measured."""

    gradient: Tensor
    log_probabilities: Tensor
    column_error: float
    mib: float


def measured(net: nn.Module, batch: Batch, attention: Mapping[str, Any]) -> Measured:
    """Differentiate the loss of a batch with this attention in all layers."""
    fill_attention(net, attention, tokens=tokens_of_images(net))
    found = gradient(net, batch)
    mib = peak_memory(lambda: gradient(net, batch), torch.device("cpu"))
    with torch.no_grad(), record_inputs(net) as recorded:
        log_probabilities = net(batch[0]).log_softmax(dim=-1)
        errors = [
            column_error(layer.attend.plan(q, k, key_padding_mask=mask), mask).mean()
            for path, layer in attention_layers(net).items()
            for q, k, _, mask in recorded[path]
        ]
    return Measured(
        torch.cat([x.flatten() for x in found]).double(),
        log_probabilities,
        float(torch.stack(errors).mean()),
        mib,
    )


def gradient(net: nn.Module, batch: Batch) -> Sequence[Tensor]:
    """Return the gradient of the loss for every weight."""
    inputs, targets = batch
    loss = F.cross_entropy(net(inputs), targets)
    return torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)


def seconds(net: nn.Module, batch: Batch, attention: Mapping[str, Any]) -> float:
    """Return how long a pass with this attention takes."""
    fill_attention(net, attention, tokens=tokens_of_images(net))
    start = time.perf_counter()
    gradient(net, batch)
    return time.perf_counter() - start


def row_of(words: str, found: Measured, exact: Measured, time_ratio: float) -> Row:
    """Compare with the exact gradient and its predictions."""
    difference = found.gradient - exact.gradient
    return Row(
        words,
        float(difference.norm() / exact.gradient.norm()),
        float(F.cosine_similarity(found.gradient, exact.gradient, 0)),
        float(divergence(found.log_probabilities, exact.log_probabilities).mean()),
        found.column_error,
        time_ratio,
        found.mib,
    )
