"""The routes of each operator, in the order in which a call is offered to them.

The first route that neither refuses the call nor is slower than a later one takes it; kernels are
chosen nowhere else. `explain` prints the choice, `force` restricts it, and `recorded` lists the
routes taken. Operators with a single kernel are not listed.
"""

from collections.abc import Iterator

from asap_exp.ops import reference
from asap_exp.ops.call import Call
from asap_exp.ops.kernels import softmax
from asap_exp.ops.kernels.asap import dual, one_launch
from asap_exp.ops.kernels.asap import op as asap
from asap_exp.ops.kernels.closure import keys_and_values_in_registers
from asap_exp.ops.kernels.coarse import dual as coarse_dual
from asap_exp.ops.kernels.coarse import op as coarse
from asap_exp.ops.kernels.espformer import op as espformer
from asap_exp.ops.kernels.espformer import plan_by_tiles, plan_in_registers
from asap_exp.ops.kernels.sinkhorn import (
    attention,
    implicit_gradient,
    keys_in_registers,
    logits_in_registers,
    plan_in_shared_memory,
    tiled,
    tiled_bf16,
    tiled_gradient,
    updates,
)
from asap_exp.ops.kernels.sinkhorn.on_chip import adjoint as adjoints_on_chip
from asap_exp.ops.kernels.sinkhorn.on_chip import launch as on_chip
from asap_exp.ops.offers import dual_alone, gradient_call, sinkhorn_call
from asap_exp.ops.routing import ROUTES, Route, force, recorded

__all__ = ["ROUTES", "force", "recorded"]


def backward_of(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield the backward pass if a gradient is needed."""
    if call.gradient:
        yield gradient_call(call)


def of_relaxed_updates(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield one plain update that keeps only the dual; the other updates are the same."""
    yield "sinkhorn", dual_alone(call, 1)


def updates_then_closure(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield the updates of a dual and its closure."""
    if call.relaxed:
        if call.refine > 0:
            yield "relaxed_updates", call
        yield sinkhorn_call(call, 1)
    else:
        yield sinkhorn_call(call, call.refine + 1)


def of_relaxed_sinkhorn(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield the updates from 0 and the closure."""
    return updates_then_closure(call._replace(refine=call.num_iters - 1))


def of_coarse(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield what reads the predicted dual."""
    closure = call._replace(num_iters=1)
    if call.one_pass:
        yield "biased_pass", closure
    elif call.num_iters == 1:  # the closure of 0
        yield "sinkhorn", closure
    else:
        yield "predicted_closure", closure


def of_separate_coarse(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield the dual, then the attention pass or the closure."""
    yield "coarse_dual", call
    if not call.one_pass:
        yield sinkhorn_call(call, call.refine + 1)
    elif not call.gradient:
        yield "attention_pass", call._replace(num_iters=1)


def of_separate_asap(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield the dual, its updates and the closure, or the dual and an attention pass."""
    yield "sliced_dual", call
    if not call.one_pass:
        yield from updates_then_closure(call)
    elif not call.gradient:
        yield "attention_pass", call._replace(num_iters=1)


ROUTES["sinkhorn"] = (
    Route("plan on chip", on_chip.launch, on_chip.refusal, on_chip.slower, then=backward_of),
    Route(
        "keys and values in registers",
        keys_and_values_in_registers.launch,
        keys_and_values_in_registers.refusal,
        keys_and_values_in_registers.slower,
    ),
    Route(
        "plan in shared memory",
        plan_in_shared_memory.launch,
        plan_in_shared_memory.refusal,
        plan_in_shared_memory.slower,
    ),
    Route("tiled, bfloat16", tiled_bf16.launch, tiled_bf16.refusal, tiled_bf16.slower),
    Route(
        "logits in registers",
        logits_in_registers.launch,
        logits_in_registers.refusal,
        then=backward_of,
    ),
    Route(
        "keys in registers", keys_in_registers.launch, keys_in_registers.refusal, then=backward_of
    ),
    Route("tiled", tiled.launch, then=backward_of),
)
ROUTES["sinkhorn_backward"] = (
    Route("updates on chip", adjoints_on_chip.launch, on_chip.refusal, on_chip.slower),
    Route("logits in registers", logits_in_registers.launch_backward, logits_in_registers.refusal),
    Route("tiled", tiled_gradient.launch),
)
ROUTES["implicit_backward"] = (Route("tiled", implicit_gradient.launch),)
ROUTES["relaxed_sinkhorn"] = (
    Route(
        "logits in registers", attention.relaxed_in_registers, logits_in_registers.relaxed_refusal
    ),
    Route("updates, then closure", attention.updates_then_closure, then=of_relaxed_sinkhorn),
)
ROUTES["relaxed_updates"] = (
    Route(
        "one call per update",
        updates.one_call_per_update,
        updates.no_gradient,
        then=of_relaxed_updates,
    ),
    Route("reference", updates.reference_updates),
)
ROUTES["attention_pass"] = (
    Route("tiled, bfloat16", tiled_bf16.attention_pass, tiled_bf16.refusal, tiled_bf16.slower),
    Route("tiled", tiled.attention_pass),
)
ROUTES["column_pass"] = (
    Route("tiled, bfloat16", tiled_bf16.column_pass, tiled_bf16.refusal, tiled_bf16.slower),
    Route("tiled", tiled.column_pass),
)
ROUTES["softmax"] = (
    Route("PyTorch", reference.softmax_attention, slower=softmax.pytorch_slower),
    Route(
        "attention pass",
        softmax.in_one_pass,
        then=lambda call: [("attention_pass", call._replace(num_iters=1))],
    ),
)
ROUTES["coarse_attention"] = (
    Route("one operator", coarse.one_operator, coarse.one_operator_refusal, then=of_coarse),
    Route("separate operators", coarse.separate_operators, then=of_separate_coarse),
)
ROUTES["espformer"] = (
    Route(
        "kernels",
        espformer.by_kernels,
        espformer.refusal,
        then=lambda call: [("espformer_plan", call)],
    ),
    Route("reference", espformer.by_reference),
)
ROUTES["espformer_plan"] = (
    Route("plan in registers", plan_in_registers.plan, plan_in_registers.refusal),
    Route("tiled", plan_by_tiles.plan),
)
ROUTES["coarse_dual"] = (
    Route("subset in registers", coarse_dual.in_registers, coarse_dual.refusal),
    Route("PyTorch", coarse_dual.in_pytorch),
)
ROUTES["biased_pass"] = (
    Route("tiled, bfloat16", tiled_bf16.biased_pass, tiled_bf16.refusal, tiled_bf16.slower),
    Route("tiled", tiled.biased_pass),
)
ROUTES["predicted_closure"] = (
    Route(
        "tiled, bfloat16",
        tiled_bf16.predicted_closure,
        tiled_bf16.refusal,
        coarse.closure_is_faster,
    ),
    Route(
        "closure",
        coarse.closure_of_natural,
        then=lambda call: [("sinkhorn", call)],
    ),
)
ROUTES["asap"] = (
    Route(
        "one operator",
        one_launch.one_operator,
        one_launch.refusal,
        then=lambda call: [("short_asap", call)],
    ),
    Route("separate operators", asap.separate_operators, then=of_separate_asap),
)
ROUTES["short_asap"] = (
    Route("one launch", one_launch.launch, one_launch.refusal, one_launch.slower),
    Route("separate launches", asap.separate_launches, then=of_separate_asap),
)
ROUTES["sliced_dual"] = (
    Route(
        "kernels",
        asap.dual_by_kernels,
        asap.dual_refusal,
        then=lambda call: [("dual_sort", call)],
    ),
    Route("reference", asap.dual_by_reference),
)
ROUTES["dual_sort"] = (
    Route("one program per head", dual.dual_by_heads, dual.one_program_refusal),
    Route("groups of slices", dual.dual_by_groups, dual.sort_refusal),
    Route("torch.sort", dual.dual_by_torch),
)
ROUTES["sliced_potentials"] = (
    Route(
        "kernels",
        dual.sliced_potentials,
        dual.self_attention_alone,
        then=lambda call: [("potential_sort", call)],
    ),
    Route("reference", reference.sliced_potentials),
)
ROUTES["potential_sort"] = (
    Route("groups of slices", dual.potentials_by_groups, dual.sort_refusal),
    Route("torch.sort", dual.potentials_by_torch),
)
