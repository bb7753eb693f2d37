"""Networks: new ones from a configuration, trained ones from a run directory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import MultiHeadAttention, attention_class
from asap_exp.core import plugins
from asap_exp.core.config import TrainConfig
from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run, repair
from asap_exp.core.tensors import fingerprint, load_tensors
from asap_exp.models.text import encoder_of
from asap_exp.models.vit import vit_of

MODELS: dict[str, Callable[[Any], nn.Module]] = {"vit": vit_of, "encoder": encoder_of}
"""Builders of networks by `model.name`."""


def build_net(config: TrainConfig) -> nn.Module:
    """Build the network of `config` with new weights from PyTorch's global seed.

    Raises UserError if its state holds more than tensors, which a file of weights could not.
    """
    net = MODELS[config.model.name](config)
    for name, value in net.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name} in the state_dict of the network is a {type(value).__name__}, and a file "
                "of weights holds tensors alone; return a tensor from get_extra_state"
            )
    return net


MOST_SHAPES = 64
"""Distinct input shapes per block (text lengths, last batches); raises Dynamo's recompile limit."""


def compile_net(
    net: nn.Module, *, lengths_vary: bool, options: Mapping[str, Any] | None = None
) -> None:
    """Compile, in place, a whole network; or its blocks, once for all lengths, where they vary.

    Compiling a graph per length would take longer than many epochs. `options` are arguments of
    `torch.compile`; UserError if it refuses them.
    """
    try:
        if lengths_vary:
            compile_blocks(net, **{"dynamic": True, **(options or {})})
        else:
            net.compile(**(options or {}))
    except (TypeError, RuntimeError, AttributeError, AssertionError) as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"trainer.compile_options={dict(options or {})} is refused by torch.compile: {words}"
        ) from error


def compile_as_configured(net: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Compile `net` as its training asks for: by default on a GPU."""
    asked = config.trainer.compile
    if not (device.type == "cuda" if asked is None else asked):
        return
    if config.trainer.strategy == "fsdp":
        compile_blocks(net, **(config.trainer.compile_options or {}))  # the units that are sharded
    else:
        compile_net(net, lengths_vary=config.lengths_vary, options=config.trainer.compile_options)


def compile_blocks(net: nn.Module, **options: Any) -> None:
    """Compile, in place, every module that directly contains an attention layer.

    Equal blocks share one compilation, and the names of the weights do not change. `options` are
    those of `torch.compile`.
    """
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, MOST_SHAPES)
    for module in net.modules():
        if any(isinstance(child, MultiHeadAttention) for child in module.children()):
            module.compile(**options)


def load_net(run: Run, device: torch.device | str = "cpu") -> nn.Module:
    """Return the trained network of `run` in evaluation mode, with frozen parameters.

    Raises UserError if the weights are damaged or differ from those in the run's manifest.
    """
    weights = load_weights(run)
    warn_if_changed(run)
    net = build_net(run.config)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{run.weights} does not fit the model of {run.path / 'config.yaml'}: {error}"
        ) from error
    return net.to(device).eval().requires_grad_(False)


def warn_if_changed(run: Run) -> None:
    """Warn if the run's attention is of another package whose code has changed since."""
    name = run.config.attention["name"]
    for then in run.manifest.plugins or []:
        if then.kind != "attention":
            continue  # the trained weights do not need it
        now = plugins.origin(then.kind, name, attention_class(name)) or {}
        if then.sha256 and now.get("sha256") != then.sha256:
            warn(
                f"{run.path} was trained with attention={name} of {then.module} "
                f"{then.version or ''}, whose code has changed since; its outputs may have too"
            )


def load_weights(run: Run) -> dict[str, Tensor]:
    """Return the weights of a finished run; raise UserError if its manifest names others."""
    manifest = run.manifest
    try:
        weights = load_tensors(run.weights)
    except UserError as error:
        raise UserError(f"{error}. {repair(run)}") from error
    if (found := fingerprint(weights)) != manifest.teacher_sha256:
        raise UserError(
            f"{run.weights} does not hold the weights that {run.path / 'manifest.json'} names "
            f"(SHA-256 {found[:8]}..., expected {str(manifest.teacher_sha256)[:8]}...). "
            f"{repair(run)}"
        )
    return weights
