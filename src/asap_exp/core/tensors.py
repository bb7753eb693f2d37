"""Tensors on disk as safetensors, which hold no code; written atomically, identified by hash."""

import hashlib
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from asap_exp.core.errors import UserError
from asap_exp.core.files import check_readable, write_bytes
from asap_exp.core.nested import leaves

PLAIN = (bool, int, float, str, bytes, torch.dtype, type(None))
"""Types of values, beside tensors, that a fingerprint counts."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors; raise UserError if one holds NaN or infinity."""
    require_finite(tensors, str(path))
    write_bytes(path, save({name: in_memory(tensor) for name, tensor in tensors.items()}))


def in_memory(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU whose memory holds its values in order; dense, if it is sparse.

    conj() only marks a tensor, and safetensors 0.8.0 writes the memory below the mark.
    """
    tensor = tensor.detach().cpu()
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.resolve_conj().resolve_neg().contiguous()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load tensors; raise UserError if the file is missing, unreadable or damaged."""
    check_readable(path)
    try:
        # Not memory-mapped: truncating a mapped file would kill the process that reads it.
        return load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged and cannot be loaded ({error}); make it again, or use a copy"
        ) from error


def require_finite(tensors: Mapping[str, Tensor], what: str, advice: str = "") -> None:
    """Raise UserError that names the first tensor of `what` with NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            bad = int((~finite).sum())
            raise UserError(
                f"{what}: {bad} of the {tensor.numel()} values of {name} are NaN or infinite, so "
                f"it is not saved as a result. {advice}".rstrip()
            )


def fingerprint(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and values; the file does not matter.

    An entry of a state_dict that is no tensor, such as what a module's get_extra_state returns,
    counts by the tensors and the plain values in it, in their order.
    """
    digest = hashlib.sha256()
    for name, value in sorted(flat(state), key=itemgetter(0)):
        if isinstance(value, Tensor):
            tensor = in_memory(value)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and plain values of a state_dict; those in one entry are numbered."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield name, value
            continue
        for number, leaf in enumerate(leaves(value)):
            if isinstance(leaf, (Tensor, *PLAIN)):
                yield f"{name}.{number}", leaf
