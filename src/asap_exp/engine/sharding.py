"""Weights, gradients and optimiser shared out over GPUs: fully sharded data parallel (FSDP2)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from asap_exp.attention import MultiHeadAttention
from asap_exp.engine.checkpoints import load_checkpoint
from asap_exp.engine.module import net_of


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints that are whole, as on one device.

    Every weight keeps its name and shape, so that weight decay, gradient clipping and the
    optimiser treat it as on one device.
    """

    def __init__(self, world: int) -> None:
        super().__init__(
            data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    def connect(self, model: L.LightningModule) -> None:
        # Lightning asks for this hook; as a method of the class it would concern every strategy.
        model.configure_model = partial(shard, model)  # type: ignore[method-assign]
        super().connect(model)

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        """Return the whole state on rank 0, numbered as PyTorch does: in the order of the groups.

        Lightning numbers it in the order of the module, which no other strategy could load.
        """
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_optimizer_state_dict(self._net, optimizer, options=options)
        if not state:
            return {}
        names = [name for group in state["param_groups"] for name in group["params"]]
        return renamed(state, {name: number for number, name in enumerate(names)})

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load the parts of this rank from a whole checkpoint, of any strategy, and return that."""
        checkpoint = load_checkpoint(Path(checkpoint_path))
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self._net, checkpoint["state_dict"], options=options)
        names = {id(weight): name for name, weight in self._net.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            named = renamed(state, {i: names[id(weight)] for i, weight in enumerate(weights)})
            set_optimizer_state_dict(self._net, optimizer, named, options=options)
        return checkpoint

    @property
    def _net(self) -> nn.Module:
        assert self.model is not None
        return self.model


def renamed(state: dict[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the state of an optimiser with other names for its weights."""
    return {
        "state": {names[old]: values for old, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[old] for old in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def shard(module: L.LightningModule) -> None:
    """Share out the network of a module, each block by itself, over the devices of its mesh."""
    net, mesh = net_of(module), module.device_mesh["data_parallel"]  # type: ignore[index]
    for block in blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def blocks(net: nn.Module) -> list[nn.Module]:
    """Return the modules that directly contain an attention layer."""
    return [
        module
        for module in net.modules()
        if module is not net
        and any(isinstance(child, MultiHeadAttention) for child in module.children())
    ]
