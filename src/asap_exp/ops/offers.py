"""The Sinkhorn operators that a call is offered to in turn, whoever asks; no kernel is imported."""

from asap_exp.ops.call import Call


def sinkhorn_call(call: Call, num_iters: int) -> tuple[str, Call]:
    """Return the call of the Sinkhorn operator with which the other operators end."""
    return "sinkhorn", call._replace(num_iters=num_iters, keeps_duals=call.gradient)


def dual_alone(call: Call, num_iters: int) -> Call:
    """Return the call of updates whose duals are the result, without a gradient."""
    return call._replace(num_iters=num_iters, keeps_duals=True, value_dim=0, gradient=False)


def gradient_call(call: Call) -> tuple[str, Call]:
    """Return the call of the backward pass: through all updates, the last ones, or implicit."""
    if call.implicit_steps is not None:
        return "implicit_backward", call._replace(num_iters=1)
    return "sinkhorn_backward", call._replace(num_iters=call.gradient_updates or call.num_iters)
