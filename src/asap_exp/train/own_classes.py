"""The user's own callbacks and module, by their paths in the configuration."""

from typing import Any

import lightning as L
from torch import nn

from asap_exp.attention import attention_class
from asap_exp.core import plugins
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.targets import instance
from asap_exp.engine.module import Classifier


def own_callbacks(config: TrainConfig) -> list[L.Callback]:
    """Return the callbacks of `callbacks.extra`; raise UserError if one cannot be made."""
    given = enumerate(config.callbacks.extra)
    return [instance(f"callbacks.extra[{i}]", value, L.Callback) for i, value in given]


def build_module(config: TrainConfig, net: nn.Module, num_classes: int) -> L.LightningModule:
    """Return the module that trains `net`: a Classifier, or that of `module`.

    Raises UserError if the latter cannot be made, or does not train `net`.
    """
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "seed": config.seed,
        "objective": config.objective,
    }
    if config.module is None:
        return Classifier(net, config.recipe, **options)
    module = instance("module", config.module, L.LightningModule, net, config.recipe, **options)
    if getattr(module, "net", None) is not net:
        raise UserError(
            f"module: {type(module).__name__} must keep the network, its first argument, as "
            "self.net, since the weights below net are those of the run"
        )
    return module


def origins(
    attention: str, module: L.LightningModule, callbacks: list[L.Callback]
) -> dict[str, Any]:
    """Return the entry of a manifest about classes of other packages; empty if there are none."""
    own: list[tuple[str, object]] = [("module", module), *(("callback", c) for c in callbacks)]
    return plugins.origins(
        [
            ("attention", attention, attention_class(attention)),
            *((kind, type(each).__name__, type(each)) for kind, each in own),
        ]
    )
