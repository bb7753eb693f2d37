"""Properties of every attention: no mass on padding, and a plan that reproduces its output."""

import pytest
import torch

from asap_exp.attention import (
    ATTENTIONS,
    AsapAttention,
    CoarseAttention,
    EspformerAttention,
    SinkhornAttention,
    SoftmaxAttention,
    UniformAttention,
    attention_class,
    attention_options,
    build_attention,
    canonical_options,
)
from asap_exp.core.errors import UserError
from asap_exp.ops import sinkhorn_attention
from tests.attention.inputs import MAKERS, MASK, TRAINABLE, assert_close, make, make_asap, make_qkv

every_attention = pytest.mark.parametrize("name", MAKERS)
SIGNED = {"differential"}  # plans with negative entries, and a norm after the plan
every_plan = pytest.mark.parametrize("name", sorted(MAKERS.keys() - SIGNED))


def padded_pairs(mask):
    return mask[:, None, :, None] | mask[:, None, None, :]


@every_attention
def test_padded_batch_equals_the_samples_one_by_one(name):
    q, k, v = make_qkv()
    attention = make(name)
    out = attention(q, k, v, key_padding_mask=MASK)
    plan = attention.plan(q, k, key_padding_mask=MASK)
    for b, valid in enumerate(~MASK):
        alone = [x[b : b + 1, :, valid] for x in (q, k, v)]
        assert_close(out[b : b + 1, :, valid], attention(*alone))
        assert_close(plan[b : b + 1, :, valid][..., valid], attention.plan(*alone[:2]))


@every_attention
def test_padded_places_are_zero_and_no_others(name):
    q, k, v = make_qkv()
    out = make(name)(q, k, v, key_padding_mask=MASK)
    plan = make(name).plan(q, k, key_padding_mask=MASK)
    assert torch.equal(out.any(dim=-1), (~MASK)[:, None].expand(out.shape[:3]))
    present = plan != 0 if name in SIGNED else plan > 0
    assert torch.equal(present, ~padded_pairs(MASK).expand(plan.shape))


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
@every_attention
def test_what_stands_in_padded_places_changes_nothing(name, garbage):
    q, k, v = make_qkv()
    spoilt = [x.masked_fill(MASK[:, None, :, None], garbage) for x in (q, k, v)]
    attention = make(name)
    expected = attention(q, k, v, key_padding_mask=MASK)
    assert torch.equal(attention(*spoilt, key_padding_mask=MASK), expected)
    plan = attention.plan(q, k, key_padding_mask=MASK)
    assert torch.equal(attention.plan(*spoilt[:2], key_padding_mask=MASK), plan)


@every_attention
def test_padding_stays_out_of_the_gradients(name):
    q, k, v = make_qkv()
    leaves = [x.masked_fill(MASK[:, None, :, None], torch.nan).requires_grad_() for x in (q, k, v)]
    out = make(name)(*leaves, key_padding_mask=MASK)
    gradients = torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True)
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert not gradient.transpose(1, 2)[MASK].any()
    assert gradients[2].transpose(1, 2)[~MASK].any()


@every_attention
def test_sample_without_a_valid_token_is_zero(name):
    q, k, v = make_qkv()
    mask = MASK.clone()
    mask[1] = True
    attention = make(name)
    out = attention(q, k, v, key_padding_mask=mask)
    assert not out[1].any()
    assert not attention.plan(q, k, key_padding_mask=mask)[1].any()
    assert_close(out[2:], attention(q, k, v, key_padding_mask=MASK)[2:])


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@every_plan
def test_output_is_the_plan_times_the_values(name, mask):
    q, k, v = make_qkv()
    attention = make(name)
    plan = attention.plan(q, k, key_padding_mask=mask)
    assert_close(plan @ v, attention(q, k, v, key_padding_mask=mask))
    assert (plan >= 0).all()


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("name", sorted(MAKERS.keys() - {"espformer"} - SIGNED))  # soft sorts
def test_rows_of_the_plan_sum_to_one(name, mask):
    q, k, _ = make_qkv()
    rows = make(name).plan(q, k, key_padding_mask=mask).sum(dim=-1)
    valid = torch.ones(MASK.shape) if mask is None else (~mask).float()
    assert_close(rows, valid[:, None].expand(rows.shape))


@every_attention
def test_mask_that_masks_nothing_is_no_mask(name):
    q, k, v = make_qkv()
    attention = make(name)
    nothing = torch.zeros_like(MASK)
    assert_close(attention(q, k, v, key_padding_mask=nothing), attention(q, k, v))


@every_attention
def test_other_numbers_of_queries_keys_and_value_channels(name):
    q, k, v = make_qkv()
    k, v = k[:, :, :5], torch.cat([v, v[..., :2]], dim=-1)[:, :, :5]
    attention = make(name)
    out = attention(q, k, v)
    assert out.shape == (*q.shape[:3], 6)
    if name not in SIGNED:
        assert_close(attention.plan(q, k) @ v, out)


@every_attention
def test_output_has_the_dtype_of_the_values(name):
    q, k, v = (x.bfloat16() for x in make_qkv())
    for mask in (None, MASK):
        out = make(name)(q, k, v, key_padding_mask=mask)
        assert out.dtype == torch.bfloat16
        full = make(name)(q.float(), k.float(), v.float(), key_padding_mask=mask)
        assert (out.float() - full).abs().max() < 0.05
        assert make(name).plan(q, k, key_padding_mask=mask).dtype == torch.float32


def test_columns_of_sinkhorn_sum_to_one_and_those_of_softmax_do_not():
    q, k, _ = make_qkv()
    columns = build_attention({"name": "sinkhorn", "num_iters": 100}).plan(q, k).sum(dim=-2)
    assert_close(columns, torch.ones_like(columns))
    assert (SoftmaxAttention().plan(q, k).sum(dim=-2) - 1).abs().max() > 0.1


def test_plans_against_plain_formulas():
    q, k, _ = make_qkv()
    S = torch.einsum("bhnd,bhmd->bhnm", q, k) / 2  # sqrt(head_dim) is 2
    assert_close(SoftmaxAttention().plan(q, k), S.exp() / S.exp().sum(dim=-1, keepdim=True))
    assert_close(UniformAttention().plan(q, k), torch.full_like(S, 1 / 7))


def test_sinkhorn_options_reach_the_operator():
    q, k, v = make_qkv()
    attention = build_attention({"name": "sinkhorn", "num_iters": 3, "eps": 0.5})
    assert torch.equal(attention(q, k, v), sinkhorn_attention(q, k, v, num_iters=3, eps=0.5))
    assert (attention(q, k, v) - SinkhornAttention(num_iters=3)(q, k, v)).abs().max() > 1e-2
    assert (attention(q, k, v) - SinkhornAttention(eps=0.5)(q, k, v)).abs().max() > 1e-5
    assert "num_iters=3, eps=0.5" in repr(attention)


def test_asap_options_reach_the_operator():
    q, k, v = make_qkv()
    outs = [make_asap(**o)(q, k, v) for o in ({}, {"refine": 1}, {"eps": 0.5})]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (outs[a] - outs[b]).abs().max() > 1e-3
    asap = make_asap()
    plain = AsapAttention(asap.theta, asap.weight)(q, k, v)
    assert (outs[0] - plain).abs().max() > 1e-3, "the query features take part"


def test_much_refined_asap_is_converged_sinkhorn():
    q, k, v = make_qkv()
    assert_close(make_asap(refine=200)(q, k, v), SinkhornAttention(num_iters=200)(q, k, v))


def test_ready_dual_is_blank_at_padded_tokens():
    q, k, _ = make_qkv()
    dual = SinkhornAttention().ready_dual(q, k, key_padding_mask=MASK)
    assert dual.shape == q.shape[:3]
    assert not dual.transpose(1, 2)[MASK].any()


def test_only_asap_has_weights_and_none_of_them_is_trained():
    for name in TRAINABLE:
        assert not build_attention({"name": name}).state_dict()
    asap = make_asap()
    settings = {"_extra_state"}  # refine and eps
    assert set(asap.state_dict()) == {"theta", "weight", "query_weight"} | settings
    assert not any(p.requires_grad for p in asap.parameters())
    without = AsapAttention(asap.theta, asap.weight)
    assert set(without.state_dict()) == {"theta", "weight"} | settings


def test_registry():
    expected = {
        "asap": AsapAttention,
        "coarse": CoarseAttention,
        "espformer": EspformerAttention,
        "sinkhorn": SinkhornAttention,
        "softmax": SoftmaxAttention,
        "uniform": UniformAttention,
    }
    assert expected.items() <= ATTENTIONS.items()
    for name, cls in ATTENTIONS.items():
        assert cls.name == name
        assert attention_class(name) is cls
    assert [name for name, cls in ATTENTIONS.items() if cls.needs_calibration] == ["asap"]


def test_options():
    assert attention_options("softmax") == attention_options("uniform") == ()
    assert attention_options("espformer") == ("temperature", "tau", "sorting", "slices", "backend")
    options = ("num_iters", "gradient_updates", "implicit_steps", "eps", "backend")
    assert attention_options("sinkhorn") == options
    assert attention_options("asap") == ("refine", "eps", "coarse", "one_pass", "backend")


def test_younger_options_at_their_defaults_are_no_part_of_the_identity():
    first = {"name": "espformer", "temperature": 10.0, "tau": 1e-3}
    given = {"name": "espformer", "sorting": "soft", "slices": 0, "backend": "auto"}
    assert canonical_options(given) == first
    assert canonical_options({**first, "slices": 8}) == {**first, "slices": 8}
    for name, options in (
        ("sinkhorn", ("gradient_updates", "implicit_steps")),
        ("coarse", ("refine", "implicit_steps")),
    ):
        usual = canonical_options({"name": name})
        for option in options:
            assert option not in usual
            assert canonical_options({"name": name, option: 2}) == {**usual, option: 2}


def test_unknown_attention_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"attention\.name=linear.*sinkhorn, softmax"):
        build_attention({"name": "linear"})


@pytest.mark.parametrize("name", TRAINABLE)
def test_unknown_option_is_refused_with_those_there_are(name):
    with pytest.raises(UserError) as error:
        build_attention({"name": name, "num_itres": 3})
    assert f"attention.num_itres=3 is not an option of attention={name}" in str(error.value)
    listed = str(error.value).split("Its options: ")[1]
    assert listed == (", ".join(f"attention.{o}" for o in attention_options(name)) or "none")


BAD_OPTIONS = {
    "num_iters": (0, "at least 1"),
    "num_iters text": ("many", "int"),
    "eps": (0.0, "> 0"),
    "eps text": ("warm", "number"),
    "eps infinite": (float("inf"), "finite"),
    "backend": ("cuda", "auto, reference, triton"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option_is_refused_when_the_attention_is_built(case):
    option, (value, allowed) = case.split()[0], BAD_OPTIONS[case]
    with pytest.raises(UserError) as error:
        build_attention({"name": "sinkhorn", option: value})
    for part in ("attention=sinkhorn", option, str(value), allowed):
        assert part in str(error.value)


def test_asap_is_not_trained():
    words = r"attention=asap is not trained: asap_exp\.compile fits it .* asap_exp\.load_compiled"
    with pytest.raises(UserError, match=words) as refused:
        build_attention({"name": "asap"})
    assert "python -m" not in str(refused.value)


@pytest.mark.parametrize("config", [{}, {"num_iters": 3}, {"name": None}, "sinkhorn", None])
def test_attention_without_a_name_is_refused(config):
    with pytest.raises(UserError, match=r'for example \{"name": "sinkhorn", .*; got') as refused:
        build_attention(config)
    assert str(refused.value).endswith(repr(config))


@pytest.mark.parametrize("masked", [False, True])
@every_attention
def test_meta_tensors_give_the_shape_of_output_and_plan(name, masked):
    q, k, v = make_qkv()
    mask = MASK if masked else None
    expected = make(name)(q, k, v, key_padding_mask=mask)
    plan = make(name).plan(q, k, key_padding_mask=mask)
    mask = mask.to("meta") if masked else None
    q, k, v = (x.to("meta") for x in (q, k, v))
    attention = make(name).to("meta")
    out = attention(q, k, v, key_padding_mask=mask)
    assert (out.shape, out.dtype, out.is_meta) == (expected.shape, expected.dtype, True)
    assert attention.plan(q, k, key_padding_mask=mask).shape == plan.shape
