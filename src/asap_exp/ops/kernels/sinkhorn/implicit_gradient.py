"""The implicit gradient of a Sinkhorn plan in passes over tiles; any length, no plan stored.

As in `reference.implicit`: each step of conjugate gradients multiplies the plan with a vector from
either side, which are the two passes that take a gradient through one update.
"""

import torch
from torch import Tensor

from asap_exp.ops.kernels.launch import Duals, Launch
from asap_exp.ops.kernels.sinkhorn.tiled_gradient import (
    Side,
    adjoint,
    exact_delta,
    through_logits,
    through_values,
)
from asap_exp.ops.reference.implicit import conjugate_gradients


def launch(
    p: Launch, grad_out: Tensor, duals: Duals, grads: tuple[Tensor, ...], num_steps: int
) -> None:
    """Write the gradients of q, k and v after the single update of `p`, and 0 as that of f^0."""
    grad_q, grad_k, grad_v, grad_start = grads
    grad_start.zero_()
    f, g = duals.rows[:, :, -1], duals.cols[:, :, -1]
    delta = exact_delta(p, grad_out, f, g)
    gamma = through_values(p, grad_out, delta, f, g, grad_v)

    def minus_over_keys(b: Tensor) -> Tensor:
        result = torch.empty_like(f)
        adjoint(p, p.q, p.k, f, g, b, result, x_is_query=True)
        return result

    def minus_over_queries(a: Tensor) -> Tensor:
        result = torch.empty_like(g)
        adjoint(p, p.k, p.q, g, f, a, result, x_is_query=False)
        return result

    column_sums = minus_over_queries(torch.full_like(f, -1.0))
    b = conjugate_gradients(minus_over_keys, minus_over_queries, gamma, column_sums, num_steps)
    # dS has the form of the gradient through one update whose plan is A too: the duals, twice.
    queries = Side(p.q, grad_out, twice(f), minus_over_keys(b)[:, :, None])
    keys = Side(p.k, p.v, twice(g), b[:, :, None])
    through_logits(p, queries, keys, delta, grad_q, grad_k)


def twice(dual: Tensor) -> Tensor:
    """Return a dual `[B, H, N]` as those of the updates 0 and 1, `[B, H, 2, N]`."""
    return torch.stack([dual, dual], dim=2)
