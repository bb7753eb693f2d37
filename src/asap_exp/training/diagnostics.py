"""After each validation: what every layer's plan looks like on a few validation images."""

import lightning as L
import torch
from torch import nn

from asap_exp.attention import attention_layers, record_inputs
from asap_exp.attention.diagnostics import column_error, entropy, largest_logit
from asap_exp.training.classifier import Classifier


class PlanDiagnostics(L.Callback):
    """Logs column error, largest logit and entropy a layer, as `plan/LAYER/WHAT`."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, Classifier):
            return
        assert trainer.val_dataloaders is not None
        inputs, _ = next(iter(trainer.val_dataloaders))
        with trainer.precision_plugin.forward_context():
            report = describe_plans(pl_module.net, inputs[: self.samples])
        pl_module.log_dict(report, batch_size=len(inputs))


def describe_plans(net: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    """Means over heads (the largest for the logits), by layer number."""
    with record_inputs(net) as recorded:
        net(inputs)
    report = {}
    for number, (path, layer) in enumerate(attention_layers(net).items()):
        q, k, _, mask = recorded[path]
        plan = layer.attend.plan(q, k, key_padding_mask=mask)
        eps = getattr(layer.attend, "eps", 1.0)
        report[f"plan/{number}/column_error"] = column_error(plan, mask).mean().item()
        report[f"plan/{number}/entropy"] = entropy(plan, mask).mean().item()
        report[f"plan/{number}/largest_logit"] = (
            largest_logit(q, k, eps=eps, key_padding_mask=mask).max().item()
        )
    return report
