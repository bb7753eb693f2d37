"""Predictions of the variants, compared with the targets and with the teacher's predictions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.attention import swapped
from asap_exp.calibration.prediction_fit import divergence
from asap_exp.core.agreement import total
from asap_exp.core.cuda_graph import Recorder
from asap_exp.core.devices import autocast
from asap_exp.core.errors import UserError
from asap_exp.core.forward_graphs import ForwardGraphs
from asap_exp.data.loader import Batch
from asap_exp.evaluate.variants import Variant

UNDEFINED = "undefined"
Note = Callable[[int, Tensor, Mapping[str, Tensor]], None]


class Comparison:
    """Sums over targets, on the device: one target per sample, or one per masked token."""

    def __init__(self) -> None:
        self.targets = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, logits: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Add a batch; `logits` and `teacher` are `[targets, classes]`. Return which are right."""
        predictions = logits.argmax(dim=-1)
        log_q, log_p = logits.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
        new = {
            "accuracy": predictions == targets,
            "agreement": predictions == teacher.argmax(dim=-1),
            "kl": divergence(log_q, log_p),
            "loss": F.nll_loss(log_q, targets, reduction="none"),
            UNDEFINED: logits.isnan().any(dim=-1),
        }
        self.targets += len(targets)
        for name, values in new.items():
            here = values.double().sum()
            self.sums[name] = self.sums[name] + here if name in self.sums else here
        return new["accuracy"]

    def of_all_ranks(self) -> "Comparison":
        """Return the sums over the targets of all ranks."""
        found = Comparison()
        found.targets = total(self.targets)
        found.sums = {name: total(value) for name, value in self.sums.items()}
        return found

    def means(self) -> dict[str, float]:
        """Return accuracy and agreement as shares, KL(teacher || variant) and loss in nats."""
        means = {name: value.item() / self.targets for name, value in self.sums.items()}
        return {name: mean for name, mean in means.items() if name != UNDEFINED}

    def require_defined(self, label: str) -> None:
        """Raise UserError if predictions are NaN, for which argmax still returns a class."""
        if undefined := int(self.sums[UNDEFINED]):
            raise UserError(
                f"{label} predicts NaN for {undefined} of {self.targets} targets, so nothing is "
                "recorded; see which weights or activations overflow, and train or distill again"
            )


@torch.inference_mode()
def compare_predictions(
    rows: Sequence[Variant],
    batches: Iterable[Batch],
    precision: str,
    stands_in: Callable[[int], bool] = lambda _: False,
    note: Note = lambda *_: None,
) -> dict[str, dict[str, float]]:
    """Return the means of `Comparison` by key of the variant; the first variant is the teacher.

    Means over the batches of all ranks; `stands_in` says of which batches nothing counts here, and
    `note` is told of each other one its number, its targets and which of them each variant has
    right.
    Works batch by batch: the logits of every masked token of a test split would not fit in memory.
    On a GPU a variant's passes are recorded as CUDA graphs, which share one pool of memory.
    """
    comparisons = {row.key: Comparison() for row in rows}
    recorder = Recorder() if next(rows[0].net.parameters()).is_cuda else None
    predict = {row.key: predictor(row, precision, recorder) for row in rows}
    for number, (inputs, targets) in enumerate(batches):
        counted = slice(0) if stands_in(number) else slice(None)
        teacher = predict[rows[0].key](inputs)
        right = {}
        for row in rows:
            logits = teacher if row is rows[0] else predict[row.key](inputs)
            comparison = comparisons[row.key]
            right[row.key] = comparison.add(logits[counted], teacher[counted], targets[counted])
        if counted.stop is None:
            note(number, targets, right)
    comparisons = {key: comparison.of_all_ranks() for key, comparison in comparisons.items()}
    for row in rows:
        comparisons[row.key].require_defined(row.label)
    return {key: comparison.means() for key, comparison in comparisons.items()}


def predictor(
    variant: Variant, precision: str, recorder: Recorder | None
) -> Callable[[Any], Tensor]:
    """Return the function from inputs to logits, which a later call does not overwrite."""

    def forward(inputs: Any) -> Tensor:
        return logits_of(variant, inputs, precision)

    if recorder is None:
        return forward
    graphs = ForwardGraphs(forward, recorder)
    return lambda inputs: graphs(inputs).clone()


def logits_of(variant: Variant, inputs: Any, precision: str) -> Tensor:
    with swapped(variant.net, variant.replacements) as net, autocast(precision, inputs.device):
        return net(inputs).float()


def compare(logits: Tensor, teacher: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the means over one batch."""
    comparison = Comparison()
    comparison.add(logits, teacher, targets)
    return comparison.means()
