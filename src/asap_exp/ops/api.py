"""The public operators: check the arguments, resolve the backend, then compute.

Tensors are `[batch, heads, tokens, head_dim]`; q has N tokens, k and v have M. `key_padding_mask`
`[B, N]`, True = padded, masks the same tokens as queries and as keys and so needs N = M. `eps` > 0
is the entropic temperature, `scale` defaults to head_dim ** -0.5. Inputs are float16, bfloat16,
float32 or float64; duals, potentials and plans are float32, or float64 for float64 inputs. Every
result is exactly 0 at padded positions, and a sample without a valid token yields zeros. ValueError
and TypeError name the offending argument.

`backend` is "reference", "triton" (fused kernels: float16, bfloat16 and float32 on a GPU) or
"auto", which uses the fused kernels wherever they can run and support the required gradients.
`routes` decides which kernel runs; `explain` prints why. The kernels multiply float32 matrices in
three TF32 passes, as accurate as IEEE arithmetic, or in one where PyTorch is allowed TF32
(`torch.backends.cuda.matmul.fp32_precision = "tf32"`); "ieee" is "auto" with IEEE arithmetic.
The fused kernels have first derivatives only: for second derivatives and `torch.func`, use
backend="reference".
"""

from collections.abc import Sequence

from torch import Tensor

from asap_exp.ops import checks as check
from asap_exp.ops import reference, subsets
from asap_exp.ops.backend import full_precision, resolve
from asap_exp.ops.coarse_settings import CoarseSettings
from asap_exp.ops.reference.coarse import CoarseDuals
from asap_exp.ops.reference.sinkhorn import SinkhornDuals
from asap_exp.ops.sliced_map import SlicedMap
from asap_exp.ops.subsets import CHOICES, WEIGHTS, Subset, check_grid


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

    Rows sum to 1 exactly, columns to n/m approximately. Gradients are taken through the unrolled
    updates, or with `gradient_updates` through as many of the last alone, which is faster and
    approximate (arXiv 2605.08123): where the updates have converged, it is as many terms of the
    Neumann series of the implicit gradient. With `implicit_steps`, that gradient is taken itself,
    by as many steps of conjugate gradients, each as dear as the gradient of one update; where
    columns do not sum to n/m, it is that of a plan whose columns keep their sums
    (`asap_exp.ops.reference.implicit`). Source: ASAP (arXiv 2605.12879), entropic optimal transport
    with uniform marginals.
    """
    check.check_count("num_iters", num_iters, 1)
    check.check_gradient_updates(gradient_updates, num_iters)
    check.check_implicit_steps(implicit_steps, gradient_updates)
    options = _common(q, k, eps, scale, key_padding_mask)
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
    options = _common(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    with full_precision(q):
        return resolve(backend, q, v).relaxed_sinkhorn_attention(
            q, k, v, num_iters=num_iters, relaxation=float(relaxation), **options
        )


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
    options = _common(q, k, eps, scale, key_padding_mask)
    with full_precision(q):
        return resolve(backend, q, no_gradient_of=(q, k)).sinkhorn_duals(
            q, k, num_iters=num_iters, **options
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
    options = _common(q, k, eps, scale, key_padding_mask)
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
    run the attention pass of the other operators, since PyTorch's flash kernels take no mask.
    """
    options = _common(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    with full_precision(q):
        return resolve(backend, q, v, no_gradient_of=(q, k, v)).softmax_attention(
            q, k, v, **options
        )


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
    check.check_mask(key_padding_mask, x, x)
    if choice == "grid":
        check_grid(x.shape[2], grid_width, key_padding_mask)
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
    options = _common(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    options |= _of_subsets(q, k, subset, key_subset, num_iters)
    options |= _of_form(refine, implicit_steps, one_pass)
    with full_precision(q):
        return resolve(backend, q, v).coarse_attention(
            q, k, v, implicit_steps=implicit_steps, **options
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
    options = _common(q, k, eps, scale, key_padding_mask)
    options |= _of_subsets(q, k, subset, key_subset, num_iters)
    with full_precision(q):
        return resolve(backend, q).coarse_duals(q, k, **options)


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
    options = _common(q, k, eps, scale, key_padding_mask)
    options |= _of_subsets(q, k, subset, key_subset, num_iters)
    options |= _of_form(refine, None, one_pass)
    resolve(backend, q)  # as in attention_plan: there is only one implementation
    with full_precision(q):
        return reference.coarse_plan(q, k, **options)


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
    options = _common(q, k, eps, scale, key_padding_mask)
    check.check_theta(theta, q)
    with full_precision(q):
        return resolve(backend, q, no_gradient_of=(q, k, theta)).sliced_potentials(
            q, k, theta, **options
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
    `adaptive_weight` `[H, 5, L]`, `logit_weight` `[H, 3]`, `relaxation` `[H]`. Source: arXiv
    2605.12879 for the potentials; the rest is this project's, with relaxed updates as in
    `relaxed_sinkhorn_attention`.
    """
    return map_attention(
        q,
        k,
        v,
        _packed(theta, weight, query_weight, adaptive_weight, logit_weight, relaxation),
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
    options = _common(q, k, eps, scale, key_padding_mask)
    check.check_value(v, k)
    _check_map(map, refine, q)
    with full_precision(q):
        return resolve(backend, q, v).map_attention(q, k, v, map, refine=refine, **options)


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
        _packed(theta, weight, query_weight, adaptive_weight, logit_weight, relaxation),
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
    options = _common(q, k, eps, scale, key_padding_mask)
    _check_map(map, refine, q)
    with full_precision(q):
        unfused = (q, k, *map.tensors) if refine else ()
        return resolve(backend, q, no_gradient_of=unfused).map_dual(
            q, k, map, refine=refine, **options
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
    options = _common(q, k, eps, scale, key_padding_mask)
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
    options = _common(q, k, eps, scale, key_padding_mask)
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
    options = _common(q, k, eps, scale, key_padding_mask)
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
    options = _common(q, k, eps, scale, key_padding_mask)
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
    options = _common(q, k, eps, scale, key_padding_mask)
    check.check_col_dual(col_dual, k)
    resolve(backend, q)  # as in attention_plan: there is only one implementation
    with full_precision(q):
        return reference.one_pass_plan(q, k, col_dual, **options)


def _packed(
    theta: Tensor,
    weight: Tensor,
    query_weight: Tensor | None,
    adaptive_weight: Tensor | None,
    logit_weight: Tensor | None,
    relaxation: Tensor | None,
) -> SlicedMap:
    """Pack the tensors of a map by their names: further features add fields between them."""
    return SlicedMap(
        theta,
        weight,
        query_weight=query_weight,
        adaptive_weight=adaptive_weight,
        logit_weight=logit_weight,
        relaxation=relaxation,
    )


def _check_map(map: SlicedMap, refine: int, q: Tensor) -> None:
    """Check a map for queries `q`, and the number of its updates."""
    check.check_count("refine", refine, 0)
    check.check_theta(map.theta, q)
    map.validate()
    if map.one_pass and refine:
        raise ValueError(
            f"refine={refine} updates the dual of the queries, and a map of one pass predicts that "
            "of the keys; give refine=0, or a map without one_pass"
        )


def _of_subsets(
    q: Tensor, k: Tensor, subset: Subset, key_subset: Subset | None, num_iters: int
) -> dict:
    """Check the options that coarse operators share beside the common ones, and return them."""
    check.check_count("num_iters", num_iters, 1)
    check.check_subset("subset", subset, q)
    if key_subset is not None:
        check.check_subset("key_subset", key_subset, k)
    elif q.shape[2] != k.shape[2]:
        raise ValueError(
            f"key_subset must be given for {q.shape[2]} queries and {k.shape[2]} keys: without "
            "it, subset names the same tokens as queries and as keys"
        )
    return {"subset": subset, "key_subset": key_subset, "num_iters": num_iters}


def _of_form(refine: int, implicit_steps: int | None, one_pass: bool) -> dict:
    """Check what a coarse operator makes of the predicted dual; return `refine` and `one_pass`."""
    check.check_switch("one_pass", one_pass)
    check.check_refine(refine, implicit_steps, one_pass=one_pass)
    return {"refine": refine, "one_pass": one_pass}


def _common(
    q: Tensor,
    k: Tensor,
    eps: float,
    scale: float | None,
    key_padding_mask: Tensor | None,
) -> dict:
    """Check the options that every operator shares, and return them."""
    check.check_query_key(q, k)
    eps, scale = check.check_temperature(eps, scale, q.shape[3])
    check.check_mask(key_padding_mask, q, k)
    return {"eps": eps, "scale": scale, "key_padding_mask": key_padding_mask}
