"""Predictions, and what they say about a variant beside its teacher."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from asap_exp.attention import swapped
from asap_exp.devices import autocast
from asap_exp.evaluation.variants import Variant


@torch.inference_mode()
def predict(variant: Variant, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> Tensor:
    """Logits `[rows, classes]`, float32 on the CPU."""
    logits = []
    with swapped(variant.net, variant.replacements) as net:
        for inputs, _ in batches:
            with autocast(precision, inputs.device):
                logits.append(net(inputs).float().cpu())
    return torch.cat(logits)


def compare(logits: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and agreement as shares; `kl` is mean KL(teacher || variant) in nats."""
    predictions = logits.argmax(dim=-1)
    return {
        "accuracy": share(predictions == labels),
        "agreement": share(predictions == teacher.argmax(dim=-1)),
        "kl": F.kl_div(
            logits.log_softmax(dim=-1),
            teacher.log_softmax(dim=-1),
            log_target=True,
            reduction="batchmean",
        ).item(),
    }


def share(hits: Tensor) -> float:
    return hits.double().mean().item()
