"""Checks of the operators' arguments, before any computation.

A wrong value or shape raises ValueError, a wrong type or dtype TypeError; each message names the
argument, what it got and what is allowed. Under `torch.compile` the checks run while tracing.
"""

import math
from numbers import Real

import torch
from torch import Tensor

from asap_exp.ops.subsets import Subset

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_query_key(q: Tensor, k: Tensor) -> None:
    for name, x in (("q", q), ("k", k)):
        check_vectors(name, x)
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(
            "q and k must agree in batch and heads: "
            f"q is {tuple(q.shape)}, k is {tuple(k.shape)} ([batch, heads, tokens, head_dim])"
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q and k must have the same head_dim: q has {q.shape[3]}, k has {k.shape[3]}"
        )
    if k.dtype != q.dtype:
        raise TypeError(f"k must have q's dtype {q.dtype}, got {k.dtype}")
    check_device("k", k, q)


def check_vectors(name: str, x: Tensor) -> None:
    check_tensor(name, x, "[batch, heads, tokens, head_dim]", 4)
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it needs at least one token and one channel"
        )


def check_value(v: Tensor, k: Tensor) -> None:
    check_tensor("v", v, "[batch, heads, tokens, width]", 4)
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            "v must agree with k in batch, heads and tokens: "
            f"v is {tuple(v.shape)}, k is {tuple(k.shape)}"
        )
    check_device("v", v, k)


def check_weighing(temperature: float, tau: float) -> None:
    """Raise TypeError or ValueError unless ESPFormer's temperature is >= 0 and tau > 0."""
    check_real("temperature", temperature)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and >= 0, got {temperature}")
    check_positive("tau", tau)


def check_real(name: str, x: float) -> None:
    """Raise TypeError unless it is a number."""
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{name} must be a number, got {x!r}")


def check_positive(name: str, x: float) -> None:
    """Raise TypeError or ValueError unless it is a finite number above 0."""
    check_real(name, x)
    # A comparison, not math.isfinite: torch.compile makes a number that changes symbolic.
    if not 0 < x < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {x}")


def check_temperature(eps: float, scale: float | None, head_dim: int) -> tuple[float, float]:
    """Return eps and scale as floats; `scale=None` means head_dim ** -0.5."""
    check_positive("eps", eps)
    if scale is None:
        return float(eps), head_dim**-0.5
    check_real("scale", scale)
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    return float(eps), float(scale)


def check_relaxation(relaxation: float) -> None:
    check_real("relaxation", relaxation)
    if not 0 < relaxation < 2:
        raise ValueError(
            f"relaxation must be > 0 and < 2, so that updates converge; got {relaxation}"
        )


def check_count(name: str, count: int, minimum: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"{name} must be an int, got {count!r}")
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {count}")


def check_gradient_updates(gradient_updates: int | None, num_iters: int) -> None:
    """Raise TypeError or ValueError unless it is None or a number of the updates."""
    if gradient_updates is None:
        return
    check_count("gradient_updates", gradient_updates, 1)
    if gradient_updates > num_iters:
        raise ValueError(
            f"gradient_updates={gradient_updates} must not be above num_iters={num_iters}; "
            "leave it out for the gradient of all"
        )


def check_implicit_steps(implicit_steps: int | None, gradient_updates: int | None) -> None:
    """Raise TypeError or ValueError unless it is None, or a number and no gradient_updates."""
    if implicit_steps is None:
        return
    check_count("implicit_steps", implicit_steps, 1)
    if gradient_updates is not None:
        raise ValueError(
            f"implicit_steps={implicit_steps} must not be given with gradient_updates="
            f"{gradient_updates}: the implicit gradient goes through no update; leave one out"
        )


def check_refine(refine: int, implicit_steps: int | None, *, one_pass: bool) -> None:
    """Raise TypeError or ValueError for options of coarse attention that do not go together."""
    check_count("refine", refine, 0)
    check_implicit_steps(implicit_steps, None)
    for name, value in (("refine", refine or None), ("implicit_steps", implicit_steps)):
        if one_pass and value is not None:
            raise ValueError(
                f"{name}={value} must not be given with one_pass=True, which makes no update over "
                "all pairs; leave one out"
            )


def check_switch(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_among(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"key_padding_mask must be a bool tensor (True = padded), got {got}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            "key_padding_mask masks the same tokens as queries and as keys, so it requires equal "
            f"numbers of both; got {q.shape[2]} queries and {k.shape[2]} keys"
        )
    if mask.shape != (q.shape[0], q.shape[2]):
        raise ValueError(
            f"key_padding_mask must have shape [batch, tokens] = {(q.shape[0], q.shape[2])}, "
            f"got {tuple(mask.shape)}"
        )
    check_device("key_padding_mask", mask, q)


def check_row_dual(row_dual: Tensor, q: Tensor) -> None:
    check_dual("row_dual", row_dual, "q", q)


def check_col_dual(col_dual: Tensor, k: Tensor) -> None:
    check_dual("col_dual", col_dual, "k", k)


def check_dual(name: str, dual: Tensor, side: str, x: Tensor) -> None:
    """Raise unless `dual` has one number for each token of `x`, which messages call `side`."""
    check_tensor(name, dual, "[batch, heads, tokens]", 3)
    check_device(name, dual, x)
    if dual.shape != x.shape[:3]:
        raise ValueError(
            f"{name} must have {side}'s batch, heads and tokens {tuple(x.shape[:3])}, "
            f"got {tuple(dual.shape)}"
        )


def check_theta(theta: Tensor, q: Tensor) -> None:
    check_tensor("theta", theta, "[heads, slices, head_dim]", 3)
    check_device("theta", theta, q)
    if theta.shape[0] != q.shape[1] or theta.shape[2] != q.shape[3]:
        raise ValueError(
            f"theta must be [heads, slices, head_dim] = [{q.shape[1]}, any, {q.shape[3]}], "
            f"got {tuple(theta.shape)}"
        )


def check_subset(name: str, subset: Subset, x: Tensor) -> None:
    """Refuse what is no `Subset` of the tokens of `x`; on a GPU its numbers are not waited for."""
    if not isinstance(subset, Subset):
        raise TypeError(
            f"{name} must be a Subset(tokens, weight), as choose_subset makes it; "
            f"got {type(subset).__name__}"
        )
    tokens, weight = subset
    check_tensor(f"{name}.weight", weight, "[batch, heads, tokens]", 3)
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"{name}.tokens must be an int64 tensor of indices, got {got}")
    of_all, count = x.shape[:2], tokens.shape[-1] if tokens.dim() == 3 else 0
    for part, given in (("tokens", tokens), ("weight", weight)):
        sizes = zip(given.shape, (*of_all, count), strict=False)
        fits = all(size in (1, whole) for size, whole in sizes) and given.shape[-1] == count
        if given.dim() != 3 or not count or not fits:
            raise ValueError(
                f"{name}.{part} must be [batch, heads, tokens of the subset] = "
                f"[{of_all[0]} or 1, {of_all[1]} or 1, the same for both], "
                f"got {tuple(given.shape)}"
            )
        check_device(f"{name}.{part}", given, x)
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and tokens.numel():
        check_numbers(name, subset, x.shape[2])


def check_numbers(name: str, subset: Subset, n: int) -> None:
    """Refuse indices that are not of `n` tokens, and weights that are no share of a mass."""
    weight = subset.weight.detach()
    try:
        least, most = (int(end) for end in subset.tokens.aminmax())
        lightest, heaviest = (float(end) for end in weight.aminmax())
    except RuntimeError:  # under vmap, and of tensors without contents, no number can be read
        return
    if least < 0 or most >= n:
        raise ValueError(
            f"{name}.tokens must be from 0 to {n - 1}, got {least} to {most}: choose the subset "
            "among these tokens"
        )
    if not 0 <= lightest <= heaviest < math.inf:  # False for NaN
        raise ValueError(
            f"{name}.weight must be at least 0 and finite, got {lightest} to {heaviest}"
        )


def gradient_needed(*inputs: Tensor | None) -> bool:
    """Return whether autograd is recording and any of the inputs requires a gradient."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def check_tensor(name: str, x: Tensor, layout: str, dims: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor {layout}, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"{name} must be one of {allowed}, got {x.dtype}")
    if x.dim() != dims:
        raise ValueError(f"{name} must be {layout}, got shape {tuple(x.shape)}")


def check_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(
            f"{name} is on {x.device}, the other tensors on {other.device}; put all on one device"
        )
