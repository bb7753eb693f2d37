"""What the operators compute on the way, for fitting and diagnostics: duals, features and plans.

Each checks its arguments, resolves the backend, then computes; `asap_exp.ops` says what they share.
"""

from collections.abc import Sequence

from torch import Tensor

from asap_exp.ops import checks as check
from asap_exp.ops import reference
from asap_exp.ops.arguments import (
    check_map,
    common_options,
    form_options,
    packed,
    sliced_plan_options,
    subset_options,
)
from asap_exp.ops.backend import full_precision, resolve
from asap_exp.ops.coarse_settings import CoarseSettings
from asap_exp.ops.reference.coarse import CoarseDuals
from asap_exp.ops.reference.sinkhorn import SinkhornDuals
from asap_exp.ops.sliced_map import SlicedMap
from asap_exp.ops.subsets import Subset


def sinkhorn_duals(
    q: Tensor,
    k: Tensor,
    *,
    num_iters: int = 20,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> SinkhornDuals:
    """Compute the duals f^{T-1}, f^T `[B, H, N]` and g^T `[B, H, M]` of `num_iters` = T updates.

    Duals are in logit units. The plan is exp(S + row + col), which is also the plan of the closure
    of `ready` = f^{T-1}.
    """
    check.check_count("num_iters", num_iters, 1)
    options = common_options(q, k, eps, scale, key_padding_mask)
    with full_precision(q):
        return resolve(backend, q, no_gradient_of=(q, k)).sinkhorn_duals(
            q, k, num_iters=num_iters, **options
        )


def coarse_duals(
    q: Tensor,
    k: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None = None,
    num_iters: int = 20,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> CoarseDuals:
    """Compute the duals of `coarse_attention`: `ready` `[B, H, N]` and `col` `[B, H, M]`.

    `ready` predicts f^{T-1} of `sinkhorn_duals`, and its closure is the two-sided form; `col`
    predicts g^T and is the bias of the keys in one pass.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    options |= subset_options(q, k, subset, key_subset, num_iters)
    with full_precision(q):
        return resolve(backend, q).coarse_duals(q, k, **options)


def predicted_dual(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None = None,
    *,
    adaptive_weight: Tensor | None = None,
    logit_weight: Tensor | None = None,
    refine: int = 0,
    relaxation: Tensor | None = None,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the row dual `[B, H, N]` whose closure `asap_attention` returns; for diagnostics."""
    return map_dual(
        q,
        k,
        packed(theta, weight, query_weight, adaptive_weight, logit_weight, relaxation),
        refine=refine,
        eps=eps,
        scale=scale,
        key_padding_mask=key_padding_mask,
        backend=backend,
    )


def map_dual(
    q: Tensor,
    k: Tensor,
    map: SlicedMap,
    *,
    refine: int = 0,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the row dual `[B, H, N]` whose closure `map_attention` returns; for diagnostics.

    Of a map of one pass, the dual of the keys `[B, H, M]`.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check_map(map, refine, q)
    with full_precision(q):
        unfused = (q, k, *map.tensors) if refine else ()
        return resolve(backend, q, no_gradient_of=unfused).map_dual(
            q, k, map, refine=refine, **options
        )


def sliced_potentials(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute exact 1-D Kantorovich potentials of the queries on each slice, `[B, H, L, N]`.

    `theta` `[H, L, D]` is used as given (fitting keeps it at unit norm). The cost on slice l is
    -(scale/eps) <q_i, theta_l> <k_j, theta_l>; each potential is centred over the valid tokens.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_theta(theta, q)
    with full_precision(q):
        return resolve(backend, q, no_gradient_of=(q, k, theta)).sliced_potentials(
            q, k, theta, **options
        )


def map_features(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    names: Sequence[str],
    *,
    phi: Tensor,
    coarse: CoarseSettings | None = None,
    of_keys: bool = False,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
) -> list[Tensor]:
    """Compute the named kinds of features (`asap_exp.ops.features`), for fitting.

    Each is `[B, H, its number of features, N]`, centred over the valid tokens. `phi` are the
    `sliced_potentials` of q and k on `theta`, or with `of_keys`, for a map of one pass, those of k
    and q; `coarse` are the settings of the feature of that name.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_theta(theta, q)
    if coarse is not None:
        coarse.validate()
    with full_precision(q):
        return reference.map_features(
            q, k, theta, phi, tuple(names), coarse=coarse, of_keys=of_keys, **options
        )


def query_features(q: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """Compute [q_i ; |q_i|^2], centred over the valid tokens, `[B, H, D + 1, N]`, for fitting."""
    check.check_query_key(q, q)
    check.check_mask(key_padding_mask, q, q)
    with full_precision(q):
        return reference.query_features(q, key_padding_mask=key_padding_mask)


def adaptive_features(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
    phi: Tensor | None = None,
) -> Tensor:
    """Compute features of the queries that adapt to the sample, for fitting, `[B, H, 5, L, N]`.

    The features, centred over the valid tokens, are the potential divided by the spread of both
    projections on its slice, and the products of the query with the mean key and the mean query at
    either end of the slice. Pass the `sliced_potentials` as `phi` to reuse them. Source:
    `asap_exp.ops.reference.adaptive`.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_theta(theta, q)
    resolve(backend, q)  # as in attention_plan: there is only one implementation
    with full_precision(q):
        return reference.adaptive_features(q, k, theta, phi=phi, **options)


def logit_features(
    q: Tensor,
    k: Tensor,
    *,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute features of the queries from their rows of logits, for fitting, `[B, H, 3, N]`.

    The features, centred over the valid tokens, are the mean, standard deviation and maximum over
    the keys of the logits standardised per key. Source: `asap_exp.ops.reference.logit_rows`.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    resolve(backend, q)  # as in attention_plan: there is only one implementation
    with full_precision(q):
        return reference.logit_features(q, k, **options)


def attention_plan(
    q: Tensor,
    k: Tensor,
    row_dual: Tensor,
    *,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the plan of the closure of `row_dual`, `[B, H, N, M]`; for diagnostics only."""
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_row_dual(row_dual, q)
    resolve(backend, q)  # refuses what every operator refuses; there is only one implementation
    with full_precision(q):
        return reference.attention_plan(q, k, row_dual, **options)


def one_pass_plan(
    q: Tensor,
    k: Tensor,
    col_dual: Tensor,
    *,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the plan softmax_j(S + g) of `col_dual` g, `[B, H, N, M]`; for diagnostics only."""
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_col_dual(col_dual, k)
    resolve(backend, q)  # as in attention_plan: there is only one implementation
    with full_precision(q):
        return reference.one_pass_plan(q, k, col_dual, **options)


def coarse_plan(
    q: Tensor,
    k: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None = None,
    num_iters: int = 20,
    refine: int = 0,
    one_pass: bool = False,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the plan of `coarse_attention`, `[B, H, N, M]`; for diagnostics only."""
    options = common_options(q, k, eps, scale, key_padding_mask)
    options |= subset_options(q, k, subset, key_subset, num_iters)
    options |= form_options(refine, None, one_pass)
    resolve(backend, q)  # as in attention_plan: there is only one implementation
    with full_precision(q):
        return reference.coarse_plan(q, k, **options)


def espformer_plan(
    q: Tensor,
    k: Tensor,
    *,
    temperature: float = 10.0,
    tau: float = 1e-3,
    theta: Tensor | None = None,
    hard: bool = False,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the plan of `espformer_attention`, `[B, H, N, M]`; for diagnostics only."""
    options = sliced_plan_options(q, k, temperature, tau, theta, hard, key_padding_mask)
    resolve(backend, q)  # as in attention_plan: there is only one implementation
    with full_precision(q):
        return reference.espformer_plan(q, k, **options)
