"""The gradient of a Sinkhorn plan by implicit differentiation, instead of through its updates.

Rows of the plan A of T updates sum to 1, and columns to some c. So A solves entropic transport
between these marginals, whatever T is, and can be differentiated in S with both held. For a loss
whose gradient for A is dA,

    dS_ij = A_ij (dA_ij - a_i - b_j),

with a and b such that all rows and columns of dS sum to 0, as they do of every direction in which A
can move. Without a, by the rows,

    a = delta - A b,                     delta_i = sum_j A_ij dA_ij
    (diag(c) - A' A) b = gamma,          gamma_j = sum_i A_ij (dA_ij - delta_i).

The system is symmetric and positive semi-definite. It is singular along constants, which leave dS
as it is, and gamma sums to 0. `conjugate_gradients` takes it a given number of steps towards its
solution, each as dear as the gradient of one update.

Where the updates have converged, c = n / m is what they aim at, and dS is the limit of their
gradient. Where they have not, c depends on S too, which dS leaves out. (Source: Eisenberger et al.,
"A unified framework for implicit Sinkhorn differentiation", CVPR 2022. To hold c as it is found,
not n / m, is this project's.)
"""

from collections.abc import Callable

import torch
from torch import Tensor


def implicit_gradient(A: Tensor, dA: Tensor, num_steps: int) -> Tensor:
    """Return dS `[..., N, M]` of a plan and the gradient for it.

    Rows of A sum to 1, or are 0 as those of padded queries.
    """
    dS = A * (dA - (A * dA).sum(dim=-1, keepdim=True))
    gamma, column_sums = dS.sum(dim=-2), A.sum(dim=-2)
    b = conjugate_gradients(
        lambda b: over_keys(A, b), lambda a: over_queries(A, a), gamma, column_sums, num_steps
    )
    return dS - A * (b[..., None, :] - over_keys(A, b)[..., :, None])


def over_keys(A: Tensor, b: Tensor) -> Tensor:
    """Return A b `[..., N]`."""
    return (A @ b[..., :, None]).squeeze(-1)


def over_queries(A: Tensor, a: Tensor) -> Tensor:
    """Return A' a `[..., M]`."""
    return (a[..., None, :] @ A).squeeze(-2)


def conjugate_gradients(
    over_keys: Callable[[Tensor], Tensor],
    over_queries: Callable[[Tensor], Tensor],
    gamma: Tensor,
    column_sums: Tensor,
    num_steps: int,
) -> Tensor:
    """Return b `[..., M]` after steps from 0 towards (diag(c) - A' A) b = gamma.

    c are `column_sums` `[..., M]`; the two functions multiply A and its transpose with a vector.
    Columns without mass are left out. Preconditioned by diag(c), so that the eigenvalues are those
    of 1 minus two half steps, from 0 to 1. Each head stops by itself once its residual is rounding.
    """
    # In units, powers of two, of each head: squares of gradients of 1e-20 would underflow.
    unit = gamma.detach().abs().amax(dim=-1, keepdim=True).log2().floor().exp2()
    weight, share = inverse(column_sums), column_sums * inverse(total(column_sums))

    def balanced(r: Tensor) -> Tensor:
        """Remove what rounding leaves along constants, which a step divides by almost 0."""
        return r - share * total(r)

    b, r = torch.zeros_like(gamma), balanced(gamma * inverse(unit))
    p = z = weight * r
    size = dot(r, z)
    rounding = size.detach() * torch.finfo(gamma.dtype).eps ** 2
    for _ in range(num_steps):
        image = column_sums * p - over_queries(over_keys(p))
        # No division once it has stopped: its derivative would be infinite, and 0 times that NaN.
        goes_on = size > rounding
        by = torch.where(goes_on, size * inverse(dot(p, image).where(goes_on, 0.0)), 0.0)
        b, r = b + by * p, balanced(r - by * image)
        z = weight * r
        size, before = dot(r, z), size
        p = z + size * inverse(before.where(goes_on, 0.0)) * p
    return b * unit


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the products of vectors `[..., M]`, `[..., 1]`."""
    return total(x * y)


def total(x: Tensor) -> Tensor:
    """Return the sums of vectors `[..., M]`, `[..., 1]`."""
    return x.sum(dim=-1, keepdim=True)


def inverse(x: Tensor) -> Tensor:
    """Return 1 / x, and 0 where x is not above the smallest normal number."""
    there = x > torch.finfo(x.dtype).tiny
    return torch.where(there, 1 / x.where(there, 1.0), 0.0)
