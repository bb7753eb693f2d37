"""Batches of any loader: on the model's device, counted, hashed, and handed to the model."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.calibration.capture import Forward
from asap_exp.core.errors import UserError
from asap_exp.core.nested import mapped, tensors_in
from asap_exp.core.tensors import fingerprint


def call(model: nn.Module, batch: Any) -> Any:
    """`model(batch)` for a tensor; for a tuple or a list, on its first item: (inputs, labels)."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, tuple | list) and batch:
        return model(batch[0])
    raise UserError(
        f"the loader gives batches of type {type(batch).__name__}; say how the model is called on "
        "one, for example forward=lambda model, batch: model(**batch)"
    )


def on_copies(forward: Forward) -> Forward:
    """Return `forward` on a copy of each batch, so that what it changes there is not read again."""

    def run(model: nn.Module, batch: Any) -> Tensor:
        return forward(model, mapped(torch.clone, batch))

    return run


def read(loader: Iterable[Any], samples: int, device: torch.device) -> list[Any]:
    """Return the first batches of `loader`, on `device`, until they hold `samples` samples.

    Two at least, however large they are: one to fit on, one to check on. Empty ones do not count.
    """
    batches: list[Any] = []
    count = empty = 0
    for batch in loader:
        if count >= samples and len(batches) > 1:
            break
        size = num_samples(batch)
        if not size:
            empty += 1
            continue
        batches.append(on_device(batch, device, copy=True))
        count += size
    if len(batches) < 2:
        beside = f" beside {empty} without samples" if empty else ""
        raise UserError(
            f"the loader gave {len(batches) or 'no'} batch{'es' * (not batches)}{beside}, and at "
            "least two are needed: one to fit on, one to check on. Give smaller batches, or more "
            "of them"
        )
    return batches


def on_device(batch: Any, device: torch.device, *, copy: bool = False) -> Any:
    """Ordinary tensors on `device`: of one made in inference mode no gradient takes note.

    With `copy` they share no memory with the batch, which a loader may refill.
    """

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, copy=copy or tensor.is_inference())

    return mapped(moved, batch)


def num_samples(batch: Any) -> int:
    """Return the first dimension of the batch's first tensor that is not empty, 0 without any."""
    return next((len(tensor) for tensor in tensors_of(batch) if len(tensor)), 0)


def check_not_empty(batch: Any) -> None:
    """Raise UserError for a batch of tensors that hold no sample."""
    tensors = [tensor for tensor in tensors_in(batch) if tensor.dim()]
    if tensors and not any(map(len, tensors)):
        raise UserError(
            f"the batch is empty: its first tensor is of shape {tuple(tensors[0].shape)}; give one "
            "with samples"
        )


def tensors_of(batch: Any) -> list[Tensor]:
    tensors = [tensor for tensor in tensors_in(batch) if tensor.dim()]
    if not tensors:
        raise UserError(
            f"the loader gives batches of type {type(batch).__name__} without any tensor in them; "
            "give tensors, or tuples, lists, mappings or dataclasses of them"
        )
    return tensors


def content_hash(batches: Sequence[Any]) -> str:
    """SHA-256 over every tensor of the batches, in their order."""
    return fingerprint(
        {f"{i}.{j}": t for i, batch in enumerate(batches) for j, t in enumerate(tensors_of(batch))}
    )
