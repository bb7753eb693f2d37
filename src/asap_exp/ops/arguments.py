"""Checks of the arguments that several public operators share, which return them as options."""

from torch import Tensor

from asap_exp.ops import checks as check
from asap_exp.ops.masking import compute_dtype
from asap_exp.ops.sliced_map import SlicedMap
from asap_exp.ops.subsets import Subset


def common_options(
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


def form_options(refine: int, implicit_steps: int | None, one_pass: bool) -> dict:
    """Check what a coarse operator makes of the predicted dual; return `refine` and `one_pass`."""
    check.check_switch("one_pass", one_pass)
    check.check_refine(refine, implicit_steps, one_pass=one_pass)
    return {"refine": refine, "one_pass": one_pass}


def subset_options(
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


def sliced_plan_options(
    q: Tensor,
    k: Tensor,
    temperature: float,
    tau: float,
    theta: Tensor | None,
    hard: bool,
    key_padding_mask: Tensor | None,
) -> dict:
    """Check the options of ESPFormer's operators, and return them; theta in the products' dtype."""
    check.check_query_key(q, k)
    check.check_weighing(temperature, tau)
    check.check_switch("hard", hard)
    if theta is not None:
        check.check_theta(theta, q)
        theta = theta.to(compute_dtype(q))
    check.check_mask(key_padding_mask, q, k)
    return {
        "temperature": float(temperature),
        "tau": float(tau),
        "theta": theta,
        "hard": hard,
        "key_padding_mask": key_padding_mask,
    }


def check_map(map: SlicedMap, refine: int, q: Tensor) -> None:
    """Check a map for queries `q`, and the number of its updates."""
    check.check_count("refine", refine, 0)
    check.check_theta(map.theta, q)
    map.validate()
    if map.one_pass and refine:
        raise ValueError(
            f"refine={refine} updates the dual of the queries, and a map of one pass predicts that "
            "of the keys; give refine=0, or a map without one_pass"
        )


def packed(
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
