"""The two passes of a closure separately, for benchmarks: no gradient and no mask.

Logits are <q, k> / sqrt(D); duals are in logit units.
"""

from torch import Tensor

from asap_exp.ops.backend import resolve


def attention_pass(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    col: Tensor,
    row: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Compute softmax_j(S + col) v, `[B, H, N, width of v]`: flash attention with a bias per key.

    `col` is `[B, H, M]`. `row` `[B, H, N]`, None for zeros, approximates minus the logs of the
    sums: some kernels shift the sums by it instead of by a running maximum.
    """
    operators = resolve(backend, q, v, no_gradient_of=(q, k, v))
    return operators.attention_pass(q, k, v, col, row, q.shape[3] ** -0.5)


def column_pass(q: Tensor, k: Tensor, row: Tensor, *, backend: str = "auto") -> Tensor:
    """Compute g_j = -LSE_i(S_ij + row_i) + log(n / m), `[B, H, M]`, from `row` `[B, H, N]`."""
    operators = resolve(backend, q, no_gradient_of=(q, k))
    return operators.column_pass(q, k, row, q.shape[3] ** -0.5)
