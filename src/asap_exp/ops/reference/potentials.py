"""Exact Kantorovich potentials of the queries in one dimension, one slice at a time.

For projections x_i = <q_i, theta>, y_j = <k_j, theta> and the cost c(x, y) = -(scale / eps) x y,
the monotone pairing of the sorted values is optimal, and

    phi_(1) = 0,   phi_(i+1) = phi_(i) - (scale / eps) (Y(i/n -) + Y(i/n +)) / 2 (x_(i+1) - x_(i))

is a potential, where Y is the quantile function of the m sorted y. For n = m the two limits are
y_(i) and y_(i+1). Any slope between the limits is feasible; the midpoint is this project's choice
(the entropic dual tends to it as eps goes to 0).
"""

import torch
from torch import Tensor

from asap_exp.ops.masking import blank, centre, compute_dtype, effective_padding


def sliced_potentials(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    x, y = projections(q, k, theta, eps=eps, scale=scale, key_padding_mask=key_padding_mask)
    return of_projections(x, y, key_padding_mask)


def projections(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float,
    scale: float,
    key_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return x and (scale / eps) y, `[B, H, L, N]` and `[B, H, L, M]`; 0 at padded positions."""
    dtype = compute_dtype(q)
    x, y = (project(blank(z, key_padding_mask, 2).to(dtype), theta.to(dtype)) for z in (q, k))
    # With the factor in y, a negative scale reverses the order of the pairing by itself.
    return x, y * (scale / eps)


def of_projections(x: Tensor, y: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Return the centred potentials `[B, H, L, N]`."""
    padding = effective_padding(key_padding_mask)
    order = valid_first_order(x, padding)
    x_sorted = x.gather(-1, order)
    y_sorted = y.gather(-1, valid_first_order(y, padding))

    steps = midpoint_quantiles(y_sorted, x.shape[-1]) * x_sorted.diff(dim=-1)
    if padding is not None:
        num_valid = (~padding).sum(dim=-1)[:, None, None, None]
        right = torch.arange(1, x.shape[-1], device=x.device)
        steps = steps.masked_fill(right >= num_valid, 0.0)
    phi_sorted = torch.nn.functional.pad(-steps.cumsum(dim=-1), (1, 0))
    phi = torch.zeros_like(phi_sorted).scatter(-1, order, phi_sorted)
    return blank(centre(blank(phi, padding, 3), padding), key_padding_mask, 3)


def project(x: Tensor, theta: Tensor) -> Tensor:
    """Project `x` `[B, H, N, D]` on `theta` `[H, L, D]`; the result is `[B, H, L, N]`."""
    return theta @ x.transpose(-1, -2)


def valid_first_order(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return indices that sort `x` `[B, H, L, N]` in ascending order, padded tokens last."""
    if padding is not None:
        x = x.masked_fill(padding[:, None, None, :], float("inf"))
    return x.argsort(dim=-1)


def midpoint_quantiles(y_sorted: Tensor, n: int) -> Tensor:
    """Return (Y(i/n -) + Y(i/n +)) / 2 for i = 1 .. n-1, `[..., n - 1]`, from m sorted values."""
    m = y_sorted.shape[-1]
    i = torch.arange(1, n, device=y_sorted.device)
    left = (i * m + n - 1) // n - 1
    right = (i * m) // n
    return (y_sorted[..., left] + y_sorted[..., right]) / 2
