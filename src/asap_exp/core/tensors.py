"""Tensors on disk: safetensors, which hold no code, written atomically and named by their hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from asap_exp.core.errors import UserError
from asap_exp.core.files import check_readable, write_bytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """UserError where a tensor holds NaN or infinity: no such file is ever a result."""
    require_finite(tensors, str(path))
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, save(contiguous))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """UserError where the file is missing, cannot be read, truncated or not safetensors."""
    check_readable(path)
    try:
        # Not mapped: a file that is cut while a stage reads it would end the process.
        return load(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged and cannot be loaded ({error}); make it again, or take a copy"
        ) from error


def require_finite(tensors: Mapping[str, Tensor], what: str, advice: str = "") -> None:
    """UserError names the first tensor of `what` that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            bad = int((~finite).sum())
            raise UserError(
                f"{what}: {bad} of the {tensor.numel()} values of {name} are NaN or infinite, so "
                f"it is not saved as a result. {advice}".rstrip()
            )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and values: the same whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
