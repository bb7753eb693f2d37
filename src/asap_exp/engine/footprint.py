"""Memory of a training before it starts, and the micro-batches that fit."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from asap_exp.core.config import RecipeConfig
from asap_exp.core.errors import UserError
from asap_exp.core.memory import available_memory, gib
from asap_exp.data.loader import Batch
from asap_exp.engine.optimisers import build_optimizer

ACTIVATIONS_ON_CPU = 2 * 2**30
"""Bytes that a pass takes on a CPU with automatic micro-batches; larger ones are not faster."""

OVERHEAD = {"cpu": 2.0, "cuda": 1.25}
"""Memory of a forward and backward pass relative to what it saves, by the type of device.

Intermediate results, and on a CPU the holes between the pieces that its allocator keeps: 1.6 to 1.9
were measured for CIFAR's ViT.
"""

SPARE = 256 * 2**20
"""Bytes for libraries' buffers and the pieces of memory that an allocator cannot use again."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that a training takes in addition to the network and the data.

    `fixed` are gradients, optimiser, averaged and kept weights; `sample` is a forward and backward
    pass of one sample, the longest; `inputs` is one such sample itself.
    """

    fixed: int
    sample: int
    inputs: int
    unused: tuple[str, ...] = ()
    """Names of the weights that the pass left without a gradient."""

    def total(self, at_once: int, batch: int) -> int:
        """Return the bytes for `at_once` samples of a batch; augmentation copies the batch."""
        return self.fixed + SPARE + at_once * self.sample + 4 * batch * self.inputs

    def most(self, memory: int, batch: int) -> int:
        """Return how many samples at once fit in `memory` bytes; 0 if not even one does."""
        return max((memory - self.total(0, batch)) // max(self.sample, 1), 0)


def footprint(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    sample: Batch,
    recipe: RecipeConfig,
    precision: AbstractContextManager,
) -> Footprint:
    """Measure one step of a copy of `model`, on the device of `sample`, which has one sample.

    The state of PyTorch's random generators is restored.
    """
    device = sample[1].device
    with unchanged_generators(device), torch.enable_grad():
        model = copy.deepcopy(model).to(device).train()
        own = {storage(t) for t in (*model.parameters(), *model.buffers(), *tree_leaves(sample))}
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            saved[storage(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        with precision, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = loss(model, sample)
        activations = sum(size for place, size in saved.items() if place not in own)
        result.backward()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        unused = tuple(name for name, p in named if p.grad is None)
        optimizer = build_optimizer(model, recipe)
        optimizer.step()
        state = nbytes(tree_leaves(list(optimizer.state.values())))
    copies = 2 if recipe.ema_decay is None else 3  # gradients, kept weights, averaged weights
    return Footprint(
        fixed=copies * nbytes([p for _, p in named]) + state,
        sample=round(OVERHEAD[device.type] * activations),
        inputs=nbytes(tree_leaves(sample)),
        unused=unused,
    )


def require_room(
    model: nn.Module, recipe: RecipeConfig, device: torch.device, beside: int = 1
) -> None:
    """Raise UserError if what a training keeps for each weight exceeds the memory there is.

    Without a pass, which would take that memory. Other optimisers than AdamW count as if they kept
    nothing, so this is the least that the training takes.
    """
    weights = nbytes([p for p in model.parameters() if p.requires_grad])
    kept = (2 if recipe.ema_decay is None else 3) + (2 if recipe.optimizer == "adamw" else 0)
    network = nbytes(list(model.parameters())) if device.type == "cuda" else 0
    needed, there = network + kept * weights, room(device, beside)
    if needed > there:
        raise UserError(
            f"this training takes at least {gib(needed)} more memory for a model of {gib(weights)}"
            f", {kept} times that for gradients, optimiser and kept weights, and {gib(there)} "
            f"{'of the GPU ' if device.type == 'cuda' else ''}are available. Choose a smaller "
            "model: model.dim, model.depth or model.mlp_ratio"
        )


def room(device: torch.device, beside: int) -> int:
    """Return the bytes that a GPU has left, or one of the processes that share a CPU's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // beside


def unchanged_generators(device: torch.device) -> AbstractContextManager:
    """Return the context after which PyTorch's random generators are as before."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def storage(tensor: object) -> int:
    """Return the address of a tensor's memory; 0 for anything else."""
    return tensor.untyped_storage().data_ptr() if isinstance(tensor, Tensor) else 0


def nbytes(values: list) -> int:
    """Return the bytes of the tensors among `values`."""
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def samples_at_once(
    found: Footprint,
    given: int | None,
    batch: int,
    device: torch.device,
    name: str,
    *,
    splits: bool = True,
    world: int = 1,
    beside: int = 1,
) -> int:
    """Return how many samples of a batch pass at once: those `given`, else as many as is sensible.

    Raises UserError, with a number that fits, if the memory that is available does not suffice.
    `name` is that of samples. A number given for a GPU is not checked, since kernels there may save
    less. If the module never `splits` a batch, the number is that of the batch. A batch is the part
    of one of `world` devices; as many processes as are `beside` each other share a CPU's memory.
    """
    gpu = device.type == "cuda"
    wanted = min(batch, given or batch)
    if given is None and splits and not gpu:
        wanted = min(batch, max(ACTIVATIONS_ON_CPU // max(found.sample, 1), 1))
    there = room(device, beside)
    needed = found.total(wanted, batch)
    if needed <= there or (gpu and given is not None):
        return wanted
    fits = found.most(there, batch)
    advice = "Not even one fits: choose a smaller model or shorter samples"
    if fits and splits:
        advice = (
            f"Set trainer.micro_batch={fits}: batches then pass in parts, and the run is the same"
        )
    elif fits:
        advice = f"Set recipe.batch_size={fits * world}"
    raise UserError(
        f"this training takes about {gib(needed)} more memory, and {gib(there)} "
        f"{'of the GPU' if gpu else ''} are available. Gradients, optimiser and kept weights take "
        f"{gib(found.fixed)}, {wanted} {name} at once {gib(wanted * found.sample)} "
        f"({gib(found.sample)} each). {advice}".replace("  ", " "),
        key="trainer.micro_batch",
        value=wanted,
        allowed=fits,
    )
