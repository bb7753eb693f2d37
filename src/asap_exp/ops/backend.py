"""The choice of the implementation that a call runs on: the reference or the Triton kernels."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from asap_exp.ops import reference, subsets
from asap_exp.ops.call import SUPPORTED_CAPABILITIES, capability
from asap_exp.ops.checks import gradient_needed

try:
    from asap_exp.ops import kernels as fused
    from asap_exp.ops import routes  # noqa: F401  (fills the table that the kernels consult)
    from asap_exp.ops.kernels.coarse.choice import farthest_tokens, takes
    from asap_exp.ops.kernels.coarse.sequence_choice import sequence_tokens
    from asap_exp.ops.kernels.tiles import EVERY_LAUNCH, INTERPRETED
    from asap_exp.ops.products import IEEE

    fused_ieee = SimpleNamespace(
        **{name: partial(getattr(fused, name), products=IEEE) for name in fused.__all__}
    )
    """The fused operators with float32 products in IEEE arithmetic."""
    subsets.FUSED["farthest"] = farthest_tokens, takes
    subsets.FUSED_BY_PADDING["sequence"] = sequence_tokens
except ImportError:  # torch on this platform comes without Triton
    fused, fused_ieee, EVERY_LAUNCH, INTERPRETED = None, None, {}, False  # type: ignore[assignment]

BACKENDS = ("auto", "reference", "triton", "ieee")
FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST_HEAD = 128


def resolve(
    backend: str, q: Tensor, v: Tensor | None = None, *, no_gradient_of: tuple = ()
) -> ModuleType | SimpleNamespace:
    """Return the operators to run: `ops.reference`, `ops.kernels` or `fused_ieee`.

    `auto` and `ieee` use the kernels wherever they can run. `no_gradient_of` lists the inputs for
    which the kernels have no gradient: if one is needed, these two use the reference. Raises
    ValueError for an unknown name, and RuntimeError with the reason if `triton` cannot run.
    """
    check_backend(backend)
    if backend == "reference" or q.is_meta:  # only the shape is needed, and it is the same
        return reference
    reason = why_not_fused(q, v, no_gradient_of, interpreted=backend == "triton" and INTERPRETED)
    if reason is None:
        return fused_ieee if backend == "ieee" else fused
    if backend in ("auto", "ieee"):
        return reference
    raise RuntimeError(
        f"backend='triton' cannot run: {reason}. Use backend='auto' or backend='reference'."
    )


def chosen(backend: str, q: Tensor) -> str:
    """Return the name of the implementation that runs a call with these queries."""
    return "reference" if resolve(backend, q) is reference else "triton"


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def why_not_fused(
    q: Tensor, v: Tensor | None, no_gradient_of: tuple, *, interpreted: bool
) -> str | None:
    """Return why the kernels cannot take these inputs, or None if they can."""
    found = capability(q)
    reason = device_refusal(q.device.type, found, interpreted=interpreted)
    reason = reason or input_refusal("q", q.dtype, q.shape[3])
    if v is not None:
        reason = reason or input_refusal("v", v.dtype, v.shape[3])
    if reason is None and no_gradient_of and gradient_needed(*no_gradient_of):
        return NO_GRADIENT
    return reason


NO_GRADIENT = "a gradient is needed, for which there is no fused kernel"


def device_refusal(
    device: str, capability: tuple[int, int] | None, *, interpreted: bool
) -> str | None:
    """Return why the kernels do not run on a device of this type and capability."""
    if fused is None:
        return "Triton is not installed"
    if device == "cuda":
        if capability in SUPPORTED_CAPABILITIES:
            return None
        return "the fused kernels need the shared memory of an A100, H100, H200, B200 or B300"
    return None if interpreted else f"q is on {device}, not on a CUDA device"


def input_refusal(name: str, dtype: torch.dtype, width: int) -> str | None:
    """Return why the kernels do not take an input of this dtype and width."""
    if dtype not in FUSED_DTYPES:
        return f"{name} is {dtype}, and the fused kernels compute in float32"
    if not 0 < width <= WIDEST_HEAD:
        return f"{name} has width {width}, and the fused kernels take 1 to {WIDEST_HEAD}"
    return None


def full_precision(q: Tensor) -> AbstractContextManager:
    """Switch autocast off: the operators choose their own dtypes."""
    # There is no autocast on meta. torch.amp.is_autocast_available would say so, but Dynamo in
    # torch 2.11 cannot trace it: a compiled model broke its graph at every operator.
    if q.device.type == "meta":
        return nullcontext()
    return torch.autocast(q.device.type, enabled=False)
