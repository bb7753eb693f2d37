"""Coarse attention: its options, and Sinkhorn as its limit."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from asap_exp.attention import CoarseAttention, SinkhornAttention, build_attention
from asap_exp.attention.diagnostics import column_error
from asap_exp.core.errors import UserError
from asap_exp.ops import choose_subset, coarse_attention
from asap_exp.ops.subsets import CHOICES, GRIDS
from tests.attention.inputs import MASK, assert_close, make_qkv

FEW = {"tokens": 3, "num_iters": 5}


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("one_pass", [False, True])
def test_with_all_tokens_it_is_sinkhorn(one_pass, mask):
    q, k, v = make_qkv()
    coarse = CoarseAttention(tokens=7, num_iters=4, eps=0.7, one_pass=one_pass)
    sinkhorn = SinkhornAttention(num_iters=4, eps=0.7)
    found, expected = (
        (attend(q, k, v, key_padding_mask=mask), attend.plan(q, k, key_padding_mask=mask))
        for attend in (coarse, sinkhorn)
    )
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])


@pytest.mark.parametrize("tokens", [11, 13])
def test_tensors_without_contents_leave_no_trace(tokens):
    """Tokens chosen by place are remembered; of these lengths no other test makes them."""
    attend, inputs = CoarseAttention(**FEW), make_qkv(tokens=tokens)
    expected = attend(*inputs) if tokens == 11 else None
    with FakeTensorMode() as mode:
        assert attend(*(mode.from_tensor(x) for x in inputs)).shape == inputs[2].shape
    found = attend(*inputs)
    assert expected is None or torch.equal(found, expected)


def test_every_option_changes_the_output():
    q, k, v = make_qkv(tokens=16)
    options = {
        "tokens": 4,
        "subset": "random",
        "weights": "voronoi",
        "seed": 1,
        "grid_width": 8,
        "one_pass": True,
        "num_iters": 2,
        "refine": 1,
        "eps": 0.5,
    }
    for name, value in options.items():
        base: dict[str, object] = dict(FEW)
        if name in ("seed", "grid_width"):
            base["subset"] = {"seed": "random", "grid_width": "grid"}[name]
        outs = [build_attention({"name": "coarse", **given})(q, k, v) for given in
                (base, base | {name: value})]  # fmt: skip
        assert (outs[0] - outs[1]).abs().max() > 1e-4, name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "voronoi"}, "subset=sequence, weights=voronoi, two-sided"),
        ({"subset": "random", "seed": 3}, "subset=random, seed=3, two-sided"),
        ({"subset": "grid", "grid_width": 8}, "subset=grid, grid_width=8, two-sided"),
        ({}, "tokens=64, subset=sequence, two-sided, num_iters=20, eps=1.0"),
    ],
)
def test_what_chooses_the_tokens_is_said(options, words):
    """`distill` prints each layer that it made."""
    assert words in CoarseAttention(**options).extra_repr()


def test_implicit_gradient_is_another_of_the_same_output():
    leaves = [x.requires_grad_() for x in make_qkv(tokens=16)]
    found = []
    for steps in (None, 3):
        out = CoarseAttention(tokens=4, refine=1, implicit_steps=steps)(*leaves)
        found.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert torch.equal(found[0][0], found[1][0])
    assert 1e-3 < (found[0][1] - found[1][1]).norm() / found[0][1].norm() < 1


def test_further_updates_follow_those_of_all_tokens():
    q, k, v = make_qkv()
    for options in ({}, {"implicit_steps": 2}):
        found = CoarseAttention(tokens=7, num_iters=4, refine=3, **options)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        outs = [a(*leaves) for a in (found, SinkhornAttention(num_iters=7, **options))]
        assert_close(*outs)
        gradients = [torch.autograd.grad(out.square().sum(), leaves) for out in outs]
        for mine, expected in zip(*gradients, strict=True):
            assert_close(mine, expected)
        assert_close(found.plan(q, k), SinkhornAttention(num_iters=7).plan(q, k))


def test_options_of_updates_that_one_pass_does_not_make_are_refused():
    for name in ("refine", "implicit_steps"):
        with pytest.raises(UserError, match=f"attention=coarse: {name}=2 must not be given with"):
            build_attention({"name": "coarse", "one_pass": True, name: 2})


def test_queries_and_keys_get_subsets_of_their_own_where_their_numbers_differ():
    q, k, v = make_qkv()
    k, v = k[:, :, :5], v[:, :, :5]
    chosen = {"choice": "farthest", "weights": "voronoi"}
    subsets = {"subset": choose_subset(q, 3, **chosen), "key_subset": choose_subset(k, 3, **chosen)}
    attend = CoarseAttention(subset="farthest", weights="voronoi", **FEW)
    assert torch.equal(attend(q, k, v), coarse_attention(q, k, v, num_iters=5, **subsets))


def test_two_sided_columns_are_nearer_to_one_than_those_of_one_pass():
    """The closure makes a column step over all tokens."""
    q, k, _ = make_qkv(tokens=64)
    errors = [
        column_error(CoarseAttention(tokens=4, one_pass=one_pass).plan(q, k)).mean()
        for one_pass in (False, True)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_texts_are_refused_as_a_grid():
    q, k, v = make_qkv()
    with pytest.raises(ValueError, match=r"^subset='grid' takes no key_padding_mask"):
        CoarseAttention(tokens=3, subset="grid")(q, k, v, key_padding_mask=MASK)
    with pytest.raises(UserError, match=r"attention=coarse: subset must be one of sequence, grid"):
        build_attention({"name": "coarse", "subset": "all"})


@pytest.mark.parametrize("subset", GRIDS)
def test_tokens_that_fill_no_grid_are_refused_by_the_name_of_the_argument(subset):
    """With a class token there are 17, which no width divides."""
    refused = rf"^subset='{subset}' cannot lay out \d+ tokens in a square \(grid_width=0\); take "
    for tokens, advice in ((17, "'sequence'$"), (18, "'sequence', or give another grid_width$")):
        with pytest.raises(ValueError, match=refused + advice):
            CoarseAttention(tokens=3, subset=subset)(*make_qkv(tokens=tokens))


def test_gradients_reach_queries_keys_and_values():
    for one_pass in (False, True):
        leaves = [x.requires_grad_() for x in make_qkv()]
        CoarseAttention(one_pass=one_pass, **FEW)(*leaves).square().sum().backward()
        assert all(leaf.grad.abs().amax() > 1e-3 for leaf in leaves)


@pytest.mark.slow
@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("subset", CHOICES)
def test_it_compiles_into_one_graph_for_all_lengths(subset, one_pass):
    torch._dynamo.reset()
    attend = CoarseAttention(tokens=4, subset=subset, weights="voronoi", one_pass=one_pass)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (16, 25):
        qkv = make_qkv(tokens=tokens)
        lengths = torch.tensor([[tokens], [9], [4], [2]])
        mask = None if subset in GRIDS else torch.arange(tokens) >= lengths
        gradients = []
        for function in (attend, compiled):
            leaves = [x.clone().requires_grad_() for x in qkv]
            out = function(*leaves, key_padding_mask=mask)
            gradients.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for found, expected in zip(*gradients, strict=True):
            assert_close(found, expected)


def test_repr_says_what_it_is():
    text = repr(CoarseAttention(one_pass=True, **FEW))
    assert text == "CoarseAttention(tokens=3, subset=sequence, one_pass, num_iters=5, eps=1.0)"
