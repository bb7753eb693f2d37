"""Diagnostics of every layer's plan on a few samples after each validation."""

from typing import Any

import lightning as L
import torch
from torch import nn

from asap_exp.attention import attention_layers, record_inputs
from asap_exp.attention.diagnostics import column_error, entropy, largest_logit
from asap_exp.engine.micro_batches import split
from asap_exp.engine.module import net_of

PLAN_NUMBERS = ("column_error", "entropy", "largest_logit")
"""What is logged of each layer, as plan/LAYER/NAME."""


class PlanDiagnostics(L.Callback):
    """Callback that logs column error, largest logit and entropy per layer as `plan/LAYER/NAME`."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert trainer.val_dataloaders is not None
        micro_batch = getattr(pl_module, "micro_batch", None)
        reports: list[dict[str, float]] = []
        sizes: list[int] = []
        for batch in trainer.val_dataloaders.first(self.samples):
            for inputs, _, _ in split(batch, micro_batch):
                with trainer.precision_plugin.forward_context():
                    reports.append(describe_plans(net_of(pl_module), inputs))
                sizes.append(len(inputs))
        pl_module.log_dict(merged(reports, sizes), batch_size=sum(sizes))


def merged(reports: list[dict[str, float]], sizes: list[int]) -> dict[str, float]:
    """Merge reports on batches of the given sizes: weighted means, and maxima for the logits."""

    def merge(name: str) -> float:
        values = [report[name] for report in reports]
        if name.endswith("largest_logit"):
            return max(values)
        return sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)

    return {name: merge(name) for name in reports[0]}


def describe_plans(net: nn.Module, inputs: Any) -> dict[str, float]:
    """Return the diagnostics per layer: means over heads, and the maximum for the logits."""
    with record_inputs(net) as recorded:
        net(inputs)
    names, values = [], []
    for number, (path, layer) in enumerate(attention_layers(net).items()):
        q, k, _, mask = recorded[path][-1]
        plan = layer.attend.plan(q, k, key_padding_mask=mask)
        eps = getattr(layer.attend, "eps", 1.0)
        found = (
            column_error(plan, mask).mean(),
            entropy(plan, mask).mean(),
            largest_logit(q, k, eps=eps, key_padding_mask=mask).max(),
        )
        names += [f"plan/{number}/{name}" for name in PLAN_NUMBERS]
        values += [value.double() for value in found]
    return dict(zip(names, torch.stack(values).tolist(), strict=True))  # waits once
