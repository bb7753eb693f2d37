"""The operators on q, k and v that models run, and the choice of a subset for them.

Each checks its arguments, resolves the backend, then computes; `asap_exp.ops` says what they share.
"""

from torch import Tensor

from asap_exp.ops import checks as check
from asap_exp.ops import subsets
from asap_exp.ops.arguments import (
    check_map,
    common_options,
    form_options,
    packed,
    sliced_plan_options,
    subset_options,
)
from asap_exp.ops.backend import full_precision, resolve
from asap_exp.ops.reference.softmax import plain_softmax_attention
from asap_exp.ops.sliced_map import SlicedMap
from asap_exp.ops.subsets import CHOICES, GRIDS, WEIGHTS, Subset, check_grid, check_grid_width


def sinkhorn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_iters: int = 20,
    gradient_updates: int | None = None,
    implicit_steps: int | None = None,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute attention with the plan of `num_iters` Sinkhorn updates, `[B, H, N, width of v]`.

    Rows sum to 1 exactly, columns to n/m approximately. Gradients are taken through the
    unrolled updates, or with `gradient_updates` through as many of the last alone, which is
    approximate, takes less memory, and less time where no kernel keeps the plan on chip (arXiv
    2605.08123): where the updates have converged, it is as many terms of the Neumann series of
    the implicit gradient. With `implicit_steps`, that gradient is taken itself, by as many
    steps of conjugate gradients, each as dear as the gradient of one update; where columns do
    not sum to n/m, it is that of a plan whose columns keep their sums
    (`asap_exp.ops.reference.implicit`). Source: ASAP (arXiv 2605.12879), entropic optimal
    transport with uniform marginals.
    """
    check.check_count("num_iters", num_iters, 1)
    check.check_gradient_updates(gradient_updates, num_iters)
    check.check_implicit_steps(implicit_steps, gradient_updates)
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    with full_precision(q):
        return resolve(backend, q, v).sinkhorn_attention(
            q,
            k,
            v,
            num_iters=num_iters,
            gradient_updates=gradient_updates,
            implicit_steps=implicit_steps,
            **options,
        )


def relaxed_sinkhorn_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_iters: int = 5,
    relaxation: float = 1.6,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the closure of f after relaxed updates from 0, `[B, H, N, width of v]`.

    Each of the `num_iters` - 1 updates replaces f by f + relaxation (F(f) - f), where F is a plain
    update. Over-relaxation (relaxation > 1) comes closer to the plan of many updates where plain
    updates converge slowly, and less close where they converge fast. With relaxation = 1 this is
    `sinkhorn_attention`. If a gradient is needed, the logits are kept in memory. Source: Thibault,
    Chizat, Dossal and Papadakis, "Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal
    transport", 2017, who relax both duals.
    """
    check.check_count("num_iters", num_iters, 1)
    check.check_relaxation(relaxation)
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    with full_precision(q):
        return resolve(backend, q, v).relaxed_sinkhorn_attention(
            q, k, v, num_iters=num_iters, relaxation=float(relaxation), **options
        )


def closure_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_dual: Tensor,
    *,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute softmax_j(S + g) v with g_j = -LSE_i(S_ij + f_i) + log(n/m).

    f is `row_dual` `[B, H, N]`; the result is `[B, H, N, width of v]`. This is the two-sided
    entropic c-transform of f; adding a constant to f changes nothing.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    check.check_row_dual(row_dual, q)
    with full_precision(q):
        return resolve(backend, q, v).closure_attention(q, k, v, row_dual, **options)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute softmax_j(S) v, `[B, H, N, width of v]`: ordinary attention, without a column step.

    This runs PyTorch's fused operator, except for padded 16-bit inputs without a gradient: these
    run the attention pass of the other operators, since PyTorch's flash kernels take no mask. With
    backend="reference" it keeps the logits, and has all derivatives.
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    with full_precision(q):
        operators = resolve(backend, q, v, no_gradient_of=(q, k, v))
        if backend == "reference":
            return plain_softmax_attention(q, k, v, **options)
        return operators.softmax_attention(q, k, v, **options)


def espformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: float = 10.0,
    tau: float = 1e-3,
    theta: Tensor | None = None,
    hard: bool = False,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute attention with an expected sliced plan, `[B, H, N, width of v]`.

    Along each slice `theta` `[H, L, D]` of unit length, the axes of a head if None, the sorted
    queries are matched with the sorted keys, and the mean of these plans weighs each by
    exp(-temperature times its cost). `tau` softens the sorts; `hard` ones are permutations with the
    gradient of the soft ones. The formulas are in `asap_exp.ops.reference.espformer`. Source: arXiv
    2502.07962. The fused kernels keep the plan in memory, as the reference does, and nothing of its
    size per slice; they take as many keys as queries.
    """
    options = sliced_plan_options(q, k, temperature, tau, theta, hard, key_padding_mask)
    check.check_value(v, k)
    with full_precision(q):
        return resolve(backend, q, v).espformer_attention(q, k, v, **options)


def choose_subset(
    x: Tensor,
    count: int,
    *,
    choice: str = "sequence",
    weights: str = "equal",
    seed: int = 0,
    grid_width: int = 0,
    key_padding_mask: Tensor | None = None,
) -> Subset:
    """Choose `count` of the tokens of `x` `[B, H, N, D]` for a coarse dual, or all if no more.

    `choice` is "sequence" (every N/count-th valid token), "grid" (every such row and column of an
    image whose rows have `grid_width` tokens, 0 for a square; at most `count`; takes no mask),
    "staggered" (as many in each row of such an image, of each row others; exactly `count`),
    "random" (by `seed`, alike in all samples of one length), "farthest" (each as far as possible
    from those before it, from the longest vector on) or "kmeans" (the tokens nearest to the centres
    of k-means; fewer where two share one). The last two are made per head, by Euclidean distances
    between the vectors: give the keys. `weights` are "equal" or "voronoi": to how many tokens each
    is the nearest. The choice depends on the valid tokens and the seed alone, and has no gradient.
    """
    check.check_vectors("x", x)
    for name, number, least in (
        ("count", count, 1),
        ("seed", seed, 0),
        ("grid_width", grid_width, 0),
    ):
        check.check_count(name, number, least)
    check.check_among("choice", choice, tuple(CHOICES))
    check.check_among("weights", weights, WEIGHTS)
    check_grid_width(choice, grid_width, ("choice", "grid_width"))
    check.check_mask(key_padding_mask, x, x)
    if choice in GRIDS:
        check_grid(choice, x.shape[2], grid_width, key_padding_mask, ("choice", "grid_width"))
    with full_precision(x):
        return subsets.choose_subset(
            x,
            count,
            choice=choice,
            weights=weights,
            seed=seed,
            grid_width=grid_width,
            key_padding_mask=key_padding_mask,
        )


def coarse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    subset: Subset,
    key_subset: Subset | None = None,
    num_iters: int = 20,
    refine: int = 0,
    one_pass: bool = False,
    implicit_steps: int | None = None,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute attention with a dual of some tokens extended to all, `[B, H, N, width of v]`.

    `subset` says which queries stand for all, and `key_subset` which keys: by default the same
    tokens. `num_iters` updates on these give a row dual, whose closure is returned, after `refine`
    further updates over all pairs; or with `one_pass` a column dual g and softmax_j(S + g) v: one
    attention pass and no column step, so that columns sum to n/m less exactly. With a subset of all
    tokens, each of weight 1, both are `sinkhorn_attention`. The gradient goes through all of it, or
    is the implicit one of the plan with `implicit_steps`, as in `sinkhorn_attention`. On a GPU all
    of it is fused, with its gradient; for a subset of more than 128 tokens (64 for the gradient in
    float32) its own updates are plain PyTorch. (This project's.)
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    options |= subset_options(q, k, subset, key_subset, num_iters)
    options |= form_options(refine, implicit_steps, one_pass)
    with full_precision(q):
        return resolve(backend, q, v).coarse_attention(
            q, k, v, implicit_steps=implicit_steps, **options
        )


def asap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
    """Compute the closure of a dual predicted from sliced potentials, `[B, H, N, width of v]`.

    f_hat = sum_l weight_l phi_l, plus query_weight . centred [q ; |q|^2], adaptive_weight .
    `adaptive_features` and logit_weight . `logit_features` if given; then `refine` further Sinkhorn
    updates before the closure, each to f + relaxation (F(f) - f), or to F(f) without a
    relaxation. `theta` `[H, L, D]`, `weight` `[H, L]`, `query_weight` `[H, D + 1]`,
    `adaptive_weight` `[H, 5, L]`, `logit_weight` `[H, 3]`, `relaxation` `[H]`, which is learned, so
    that any value is taken. Source: arXiv 2605.12879 for the potentials; the rest is this
    project's, with relaxed updates as in `relaxed_sinkhorn_attention`.
    """
    return map_attention(
        q,
        k,
        v,
        packed(theta, weight, query_weight, adaptive_weight, logit_weight, relaxation),
        refine=refine,
        eps=eps,
        scale=scale,
        key_padding_mask=key_padding_mask,
        backend=backend,
    )


def map_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    map: SlicedMap,
    *,
    refine: int = 0,
    eps: float = 1.0,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute `asap_attention` with a map given as one object, `[B, H, N, width of v]`.

    With a map of one pass it is softmax_j(S + g) v instead, where g is the predicted dual of the
    keys: one attention pass and no column step, so that columns sum to n/m less exactly. Such a map
    takes no `refine`. (This project's.)
    """
    options = common_options(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    check_map(map, refine, q)
    with full_precision(q):
        return resolve(backend, q, v).map_attention(q, k, v, map, refine=refine, **options)
