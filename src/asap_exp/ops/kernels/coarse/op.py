"""Coarse attention from the duals of a subset: in one operator, or in several with a gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asap_exp.ops.call import Call, device_of, one_wave
from asap_exp.ops.checks import gradient_needed
from asap_exp.ops.coarse_settings import CoarseSettings
from asap_exp.ops.kernels.closure import keys_and_values_in_registers as keys_and_values
from asap_exp.ops.kernels.coarse import dual, extension
from asap_exp.ops.kernels.coarse import subset as updates
from asap_exp.ops.kernels.coarse.biased_softmax import biased_softmax
from asap_exp.ops.kernels.coarse.extension import Sides
from asap_exp.ops.kernels.launch import Launch, unwritten_output
from asap_exp.ops.kernels.sinkhorn import tiled_bf16
from asap_exp.ops.kernels.sinkhorn.op import sinkhorn
from asap_exp.ops.masking import blank, centre, effective_padding
from asap_exp.ops.products import AS_ALLOWED
from asap_exp.ops.reference.coarse import CoarseDuals
from asap_exp.ops.routing import choose
from asap_exp.ops.subsets import Subset


def coarse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None,
    num_iters: int,
    refine: int,
    one_pass: bool,
    implicit_steps: int | None = None,
    **options: Any,
) -> Tensor:
    call = _call(q, k, v, subset, key_subset, num_iters)
    call = call._replace(one_pass=one_pass, refine=refine)
    route = choose("coarse_attention", call)
    options |= {"one_pass": one_pass, "num_iters": num_iters}
    if call.gradient or refine:  # which one operator does not take
        options |= {"refine": refine, "implicit_steps": implicit_steps}
    return route.launch(q, k, v, subset, key_subset, **options)


def coarse_duals(
    q: Tensor,
    k: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None,
    num_iters: int,
    **options: Any,
) -> CoarseDuals:
    call = _call(q, k, k, subset, key_subset, num_iters)
    launch = choose("coarse_dual", call).launch
    sides = {"of_queries": True, "of_keys": True}
    return launch(q, k, subset, key_subset, num_iters=num_iters, **sides, **options)


def centred_dual(
    q: Tensor, k: Tensor, settings: CoarseSettings, *, of_queries: bool, **options: Any
) -> Tensor:
    """Return the dual of the feature `coarse`: its mean over the valid tokens of a side is 0."""
    mask, num_iters = options["key_padding_mask"], settings.num_iters
    subset, key_subset = settings.subsets(q, k, mask)
    launch = choose("coarse_dual", _call(q, k, k, subset, key_subset, num_iters)).launch
    sides = {"of_queries": of_queries, "of_keys": not of_queries}
    ready, col = launch(q, k, subset, key_subset, num_iters=num_iters, **sides, **options)
    found = ready if of_queries else col
    return blank(centre(found, effective_padding(mask)), mask, 2)


def pass_with_dual(
    q: Tensor, k: Tensor, v: Tensor, col: Tensor, *, products: str = AS_ALLOWED, **options: Any
) -> Tensor:
    """Return softmax_j(S + col) v `[B, H, N, width of v]`, with a gradient."""
    slope = options["scale"] / options["eps"]
    return biased_softmax(q, k, v, col, options["key_padding_mask"], slope, products)


def _call(
    q: Tensor, k: Tensor, v: Tensor, subset: Subset, key_subset: Subset | None, num_iters: int
) -> Call:
    sizes = [each.tokens.shape[2] for each in (subset, key_subset) if each is not None]
    device = device_of(q)
    return Call(
        q.shape[2], k.shape[2], q.shape[3], v.shape[3], q.dtype, v.dtype, num_iters,
        gradient=gradient_needed(q, k, v), subset=max(sizes),
        one_wave=one_wave(q.shape[0] * q.shape[1], device), capability=device.capability,
    )  # fmt: skip


def one_operator_refusal(call: Call) -> str | None:
    """Return why one operator does not take the call, or None if it does."""
    if call.gradient:
        return "has no gradient"
    if call.refine:
        return f"makes no further updates, got refine={call.refine}"
    return dual.refusal(call)


def separate_operators(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    *,
    one_pass: bool,
    num_iters: int,
    refine: int = 0,
    implicit_steps: int | None = None,
    products: str = AS_ALLOWED,
    **options: Any,
) -> Tensor:
    """Predict the dual, then run further updates and the closure, or the attention pass."""
    call = _call(q, k, v, subset, key_subset, num_iters)
    with torch.set_grad_enabled(torch.is_grad_enabled() and implicit_steps is None):
        ready, col = choose("coarse_dual", call).launch(
            q, k, subset, key_subset, of_queries=not one_pass, of_keys=one_pass,
            num_iters=num_iters, products=products, **options,
        )  # fmt: skip
    options |= {"products": products}
    if one_pass:
        return pass_with_dual(q, k, v, col, **options)
    if implicit_steps is not None:
        return sinkhorn(
            q, k, v, ready, num_iters=refine + 1, implicit_steps=implicit_steps, **options
        ).out
    return sinkhorn(q, k, v, ready, num_iters=refine + 1, **options).out


def one_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    subset: Subset,
    key_subset: Subset | None,
    *,
    one_pass: bool,
    num_iters: int,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
    products: str = AS_ALLOWED,
) -> Tensor:
    """Predict the dual and run the closure or the attention pass; no gradient."""
    return _coarse_attention(
        q, k, v, *dual.tensors(subset, key_subset), key_padding_mask,
        one_pass, num_iters, scale / eps, products,
    )  # fmt: skip


@torch.library.custom_op("asap_exp::coarse_attention", mutates_args=())
def _coarse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_tokens: Tensor,
    q_weight: Tensor,
    k_tokens: Tensor,
    k_weight: Tensor,
    padding: Tensor | None,
    one_pass: bool,
    num_iters: int,
    slope: float,
    products: str,
) -> Tensor:
    out = unwritten_output(q, v)
    if out.numel():
        subset, key_subset = Subset(q_tokens, q_weight), Subset(k_tokens, k_weight)
        with torch.cuda.device_of(q):
            p = Launch.of(q, k, v, padding, num_iters, slope, products)
            closure = p._replace(num_iters=1)
            if num_iters == 1 and not one_pass:
                choose("sinkhorn", closure.call()).launch(closure, None, out, None)
                return out
            duals = dual.empty_duals(p, subset, key_subset, save=False)
            updates.launch(p, subset, key_subset, duals, save=False)
            of_queries = not one_pass
            sides = Sides(p, key_subset if of_queries else subset, of_queries=of_queries)
            predict = partial(extension.launch, p, sides, dual.last_of(duals, of_queries))
            operator = "biased_pass" if one_pass else "predicted_closure"
            choose(operator, closure.call()).launch(closure, predict, out)
    return out


@_coarse_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return unwritten_output(q, v)


def closure_is_faster(call: Call) -> str | None:
    """Return why the closure by another route is faster, or None if none is."""
    if keys_and_values.refusal(call) is None and keys_and_values.slower(call) is None:
        return f"up to {keys_and_values.TOKENS} tokens are faster with keys and values in registers"
    return tiled_bf16.slower(call)


def closure_of_natural(p: Launch, predict: Callable[..., None], out: Tensor) -> None:
    """Predict f in natural units, and run the closure by a route of Sinkhorn attention."""
    f = p.q.new_empty(p.q.shape[:3], dtype=torch.float32)
    predict(f, natural=True)
    choose("sinkhorn", p.call()).launch(p, f, out, None)
