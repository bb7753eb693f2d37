"""The teacher with cheaper gradients as methods: what mode=train is about; else as without them.

Their references take the same gradients in float64: how far these are from the exact one is another
question (`evaluate.gradient_error`).
"""

import functools

from asap_exp.benchmark.operators import COARSE_UPDATES, evenly, of_both
from asap_exp.benchmark.registry import Method, Setting, method
from asap_exp.ops import coarse_attention, sinkhorn_attention


@method("sinkhorn_{num_iters}_last_{updates}")
def through_last(setting: Setting, num_iters: int, updates: int) -> Method:
    """Build the teacher with its gradient through the last updates alone."""
    attend = functools.partial(sinkhorn_attention, num_iters=num_iters, gradient_updates=updates)
    return of_both(setting, f"Sinkhorn T = {num_iters}, gradient of the last {updates}", attend)


@method("sinkhorn_{num_iters}_implicit_{steps}")
def implicit(setting: Setting, num_iters: int, steps: int) -> Method:
    """Build the teacher with its implicit gradient, by steps of conjugate gradients."""
    attend = functools.partial(sinkhorn_attention, num_iters=num_iters, implicit_steps=steps)
    return of_both(setting, f"Sinkhorn T = {num_iters}, implicit gradient, {steps} steps", attend)


@method("coarse_{tokens}_refine_{refine}")
def from_coarse_start(setting: Setting, tokens: int, refine: int) -> Method:
    """Build updates over all pairs from the coarse dual of tokens at equal distances."""
    attend = functools.partial(
        coarse_attention,
        subset=evenly(setting, tokens),
        num_iters=COARSE_UPDATES,
        refine=refine,
    )
    return of_both(setting, f"coarse, {tokens} tokens, refine {refine}", attend)
