"""The names, arguments and defaults that other code relies on."""

import inspect

import pytest

from asap_exp import ops

COMMON = "eps=1.0 scale=None key_padding_mask=None backend='auto'"
SLICED = "temperature=10.0 tau=0.001 theta=None hard=False key_padding_mask=None backend='auto'"
SIGNATURES = {
    "sinkhorn_attention": "q k v * num_iters=20 gradient_updates=None implicit_steps=None "
    f"{COMMON}",
    "relaxed_sinkhorn_attention": f"q k v * num_iters=5 relaxation=1.6 {COMMON}",
    "sinkhorn_duals": f"q k * num_iters=20 {COMMON}",
    "closure_attention": f"q k v row_dual * {COMMON}",
    "softmax_attention": f"q k v * {COMMON}",
    "sliced_potentials": f"q k theta * {COMMON}",
    "adaptive_features": f"q k theta * {COMMON} phi=None",
    "logit_features": f"q k * {COMMON}",
    "asap_attention": "q k v theta weight query_weight=None * adaptive_weight=None "
    f"logit_weight=None refine=0 relaxation=None {COMMON}",
    "choose_subset": "x count * choice='sequence' weights='equal' seed=0 grid_width=0 "
    "key_padding_mask=None",
    "coarse_attention": "q k v * subset key_subset=None num_iters=20 refine=0 one_pass=False "
    f"implicit_steps=None {COMMON}",
    "coarse_duals": f"q k * subset key_subset=None num_iters=20 {COMMON}",
    "coarse_plan": f"q k * subset key_subset=None num_iters=20 refine=0 one_pass=False {COMMON}",
    "espformer_attention": f"q k v * {SLICED}",
    "espformer_plan": f"q k * {SLICED}",
    "attention_plan": f"q k row_dual * {COMMON}",
    "one_pass_plan": f"q k col_dual * {COMMON}",
    "map_attention": f"q k v map * refine=0 {COMMON}",
    "map_dual": f"q k map * refine=0 {COMMON}",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    words, keyword_only = [], False
    for parameter in inspect.signature(getattr(ops, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        words.append(parameter.name + default)
    assert " ".join(words) == SIGNATURES[name]


def test_duals_have_names():
    assert ops.SinkhornDuals._fields == ("ready", "row", "col")
    assert set(SIGNATURES) <= set(ops.__all__)
