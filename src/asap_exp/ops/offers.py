"""The Sinkhorn operators that a call is offered to in turn, whoever asks; no kernel is imported."""

from collections.abc import Iterator

from asap_exp.ops.call import Call


def sinkhorn_call(call: Call, num_iters: int) -> tuple[str, Call]:
    """Return the call of the Sinkhorn operator with which the other operators end."""
    return "sinkhorn", call._replace(num_iters=num_iters, keeps_duals=call.gradient)


def dual_alone(call: Call, num_iters: int) -> Call:
    """Return the call of updates whose duals are the result, without a gradient."""
    return call._replace(num_iters=num_iters, keeps_duals=True, value_dim=0, gradient=False)


def of_sinkhorn_attention(call: Call) -> Iterator[tuple[str, Call]]:
    """Yield the updates without a gradient, if not all have one, and those with the plan.

    The implicit gradient is taken at the last update.
    """
    last = call.num_iters
    if call.gradient and call.implicit_steps is not None:
        last = 1
    elif call.gradient and call.gradient_updates is not None:
        last = call.gradient_updates
    if last < call.num_iters:
        yield "sinkhorn", dual_alone(call, call.num_iters - last)
    yield sinkhorn_call(call, last)
