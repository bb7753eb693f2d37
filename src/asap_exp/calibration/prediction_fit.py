"""The fit of all layers together: KL between the teacher's and the compiled model's predictions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asap_exp.attention import AsapAttention, swapped
from asap_exp.calibration.capture import Forward, batch_name
from asap_exp.calibration.gradient import (
    CHECKS,
    check_points,
    reshuffled,
    restore,
    trainable,
    values,
)
from asap_exp.calibration.steps import AdamFit, ModelData
from asap_exp.calibration.updates import CosineAdam
from asap_exp.core.agreement import total
from asap_exp.core.devices import autocast, device_of
from asap_exp.core.errors import UserError


class Example(NamedTuple):
    """A batch of the loader, and the teacher's log-probabilities on it `[..., classes]`."""

    batch: Any
    teacher: Tensor
    counts: bool = True
    """False for a stand-in (see `SharedBatches`)."""


@torch.no_grad()
def teacher_examples(
    net: nn.Module,
    batches: Sequence[Any],
    precision: str,
    forward: Forward,
    name: Callable[[int], str] = batch_name,
    stands_in: Callable[[int], bool] = lambda _: False,
) -> list[Example]:
    """Return each batch with the teacher's predictions on it.

    `name(index)` names a batch in messages, and `stands_in(index)` says which ones do not count.
    Raises UserError if a prediction is NaN.
    """
    examples = [
        Example(batch, log_probabilities(net, batch, precision, forward), not stands_in(index))
        for index, batch in enumerate(batches)
    ]
    for index, example in enumerate(examples):
        if example.teacher.isnan().any():
            raise UserError(
                f"the model's predictions on {name(index)} hold NaN or infinity, so no compiled "
                "model can be compared with them; look at the batch and at the model's last layers"
            )
    return examples


def log_probabilities(net: nn.Module, batch: Any, precision: str, forward: Forward) -> Tensor:
    with autocast(precision, device_of(net)):
        logits = forward(net, batch)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the model gives a {type(logits).__name__} where end_to_end needs predictions, a "
            "tensor [..., classes]; take them out, for example with "
            "forward=lambda model, batch: model(batch)['logits']"
        )
    return logits.float().log_softmax(dim=-1)


def divergence(predicted: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || predicted) `[...]` of log-probabilities `[..., classes]`, in nats.

    A class that the teacher leaves out (-inf) adds nothing, whatever is predicted for it.
    """
    beyond = (teacher - predicted).masked_fill(teacher == float("-inf"), 0.0)
    return (teacher.exp() * beyond).sum(dim=-1)


def prediction_kl(net: nn.Module, example: Example, precision: str, forward: Forward) -> Tensor:
    """Return KL(teacher's prediction || the model's), summed over a batch's predictions; nats."""
    predicted = log_probabilities(net, example.batch, precision, forward)
    kl = divergence(predicted, example.teacher).sum()
    return kl if example.counts else 0.0 * kl


def num_predictions(examples: Sequence[Example]) -> list[int]:
    """Return the predictions of each example, at least 1, those of the other ranks included."""
    here = [example.teacher[..., 0].numel() * example.counts for example in examples]
    found: list[int] = total(torch.tensor(here)).clamp(min=1).tolist()
    return found


@torch.no_grad()
def mean_prediction_kl(
    net: nn.Module, examples: Sequence[Example], precision: str, forward: Forward
) -> float:
    parts = [prediction_kl(net, example, precision, forward).double() for example in examples]
    return float(total(torch.stack(parts)).sum()) / sum(num_predictions(examples))


def fit_end_to_end(
    maps: Mapping[str, AsapAttention],
    scales: Mapping[str, Tensor],
    data: ModelData,
    settings: AdamFit,
) -> dict[str, float]:
    """Fit slices and weights of all `maps` in place; return the held-out KL `before` and `after`.

    Several ranks share each batch. Keeps the best state on the held-out batches, the start
    included, so it never ends worse there.
    """
    net, precision, forward, updates = data.net, data.precision, data.forward, settings.updates

    def held_out_kl() -> float:
        return mean_prediction_kl(net, data.held_out, precision, forward)

    def loss(item: tuple[Example, int]) -> Tensor:
        example, predictions = item
        return prediction_kl(net, example, precision, forward) / predictions

    checks = check_points(updates, CHECKS)
    with swapped(net, maps):
        best = {path: values(attend) for path, attend in maps.items()}
        before = lowest = held_out_kl()
        with ExitStack() as opened:
            parameters = [
                parameter
                for path, attend in maps.items()
                for parameter in opened.enter_context(trainable(attend, scales[path], slices=True))
            ]
            adam = CosineAdam(loss, parameters, settings.lr, updates)
            items = list(zip(data.fit, num_predictions(data.fit), strict=True))
            drawn = data.shown(reshuffled(items, updates, data.seed), updates)
            for number, item in enumerate(drawn, start=1):
                adam.update(item)
                if number in checks and (now := held_out_kl()) < lowest:  # False for NaN
                    lowest = now
                    best = {path: values(attend) for path, attend in maps.items()}
        for path, attend in maps.items():
            restore(attend, best[path])
    return {"before": before, "after": lowest}
