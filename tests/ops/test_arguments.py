"""Wrong arguments are refused before any computation; errors name the argument and its value."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.inputs import ATTENTIONS, OPERATORS, QUERY_KEY_OPERATORS, make_inputs

FITTED = {name: op for name, op in OPERATORS.items() if "theta" in op.reads}
WEIGHTED = {name: op for name, op in OPERATORS.items() if "weight" in op.reads}
OF_A_DUAL = {name: op for name, op in OPERATORS.items() if "row_dual" in op.reads}


def every(operators):
    return pytest.mark.parametrize("operator", operators.values(), ids=operators)


class NoComputation(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} ran before the arguments were checked")


@contextmanager
def refused(error, *parts):
    """Expect `error` before any computation, with all `parts` in its message, in this order."""
    pattern = ".*".join(re.escape(part) for part in parts)
    with NoComputation(), pytest.raises(error, match=f"(?s){pattern}"):
        yield


def wrong(inputs, name, change):
    return replace(inputs, **{name: change(getattr(inputs, name))})


# (argument, change, error, parts of the message); B, H, N, M = 2, 3, 7, 5; D = 4.
TENSORS = {
    "q list": ("q", lambda x: [1.0], TypeError, ("q must be a tensor", "list")),
    "k None": ("k", lambda x: None, TypeError, ("k must be a tensor", "NoneType")),
    "q int": ("q", lambda x: x.long(), TypeError, ("q must be", "bfloat16", "torch.int64")),
    "k bool": ("k", lambda x: x > 0, TypeError, ("k must be", "float64", "torch.bool")),
    "q complex": ("q", lambda x: x + 0j, TypeError, ("q must be", "torch.complex128")),
    "k dtype": ("k", lambda x: x.float(), TypeError, ("k must", "float64", "float32")),
    "q 3-D": ("q", lambda x: x[0], ValueError, ("q must be [batch, heads", "(3, 7, 4)")),
    "k 5-D": ("k", lambda x: x[None], ValueError, ("k must be [batch", "(1, 2, 3, 5, 4)")),
    "q no token": ("q", lambda x: x[:, :, :0], ValueError, ("q has shape (2, 3, 0, 4)", "token")),
    "k no token": ("k", lambda x: x[:, :, :0], ValueError, ("k has shape (2, 3, 0, 4)", "token")),
    "q no channel": ("q", lambda x: x[..., :0], ValueError, ("q has shape (2, 3, 7, 0)",)),
    "k batch": ("k", lambda x: x[:1], ValueError, ("q and k", "batch", "(1, 3, 5, 4)")),
    "q heads": ("q", lambda x: x[:, :2], ValueError, ("q and k", "heads", "(2, 2, 7, 4)")),
    "k width": ("k", lambda x: x[..., :3], ValueError, ("q and k", "head_dim", "4", "3")),
    "k device": ("k", lambda x: x.to("meta"), ValueError, ("k is on meta", "cpu")),
}


@every(QUERY_KEY_OPERATORS)
@pytest.mark.parametrize("case", TENSORS.values(), ids=TENSORS)
def test_queries_and_keys(operator, case):
    name, change, error, parts = case
    inputs = wrong(make_inputs(queries=7, keys=5), name, change)
    with refused(error, *parts):
        operator(inputs)


VALUES = {
    "list": (lambda x: [[1.0]], TypeError, ("v must be a tensor", "list")),
    "int": (lambda x: x.int(), TypeError, ("v must be one of", "float16", "torch.int32")),
    "3-D": (lambda x: x[0], ValueError, ("v must be [batch, heads, tokens", "(3, 5, 5)")),
    "tokens": (lambda x: x[:, :, :4], ValueError, ("v must agree with k", "(2, 3, 4, 5)")),
    "heads": (lambda x: x[:, :2], ValueError, ("v must agree with k", "(2, 2, 5, 5)")),
    "batch": (lambda x: x[:1], ValueError, ("v must agree with k", "(1, 3, 5, 5)")),
    "device": (lambda x: x.to("meta"), ValueError, ("v is on meta", "cpu")),
}


@every(ATTENTIONS)
@pytest.mark.parametrize("case", VALUES.values(), ids=VALUES)
def test_values(operator, case):
    change, error, parts = case
    inputs = wrong(make_inputs(queries=7, keys=5), "v", change)
    with refused(error, *parts):
        operator(inputs)


ROW_DUALS = {
    "None": (lambda x: None, TypeError, ("row_dual must be a tensor", "NoneType")),
    "int": (lambda x: x.long(), TypeError, ("row_dual must be one of", "torch.int64")),
    "4-D": (lambda x: x[..., None], ValueError, ("row_dual must be", "(2, 3, 7, 1)")),
    "of the keys": (lambda x: x[..., :5], ValueError, ("row_dual", "(2, 3, 7)", "(2, 3, 5)")),
    "heads": (lambda x: x[:, :1], ValueError, ("row_dual", "(2, 3, 7)", "(2, 1, 7)")),
}


@every(OF_A_DUAL)
@pytest.mark.parametrize("case", ROW_DUALS.values(), ids=ROW_DUALS)
def test_row_duals(operator, case):
    change, error, parts = case
    inputs = wrong(make_inputs(queries=7, keys=5), "row_dual", change)
    with refused(error, *parts):
        operator(inputs)


THETAS = {
    "None": (lambda x: None, TypeError, ("theta must be a tensor", "NoneType")),
    "int": (lambda x: x.long(), TypeError, ("theta must be one of", "torch.int64")),
    "2-D": (lambda x: x[0], ValueError, ("theta must be [heads, slices", "(3, 4)")),
    "heads": (lambda x: x[:2], ValueError, ("theta", "[3, any, 4]", "(2, 3, 4)")),
    "width": (lambda x: x[..., :3], ValueError, ("theta", "[3, any, 4]", "(3, 3, 3)")),
}


@every(FITTED)
@pytest.mark.parametrize("case", THETAS.values(), ids=THETAS)
def test_directions(operator, case):
    change, error, parts = case
    inputs = wrong(make_inputs(), "theta", change)
    with refused(error, *parts):
        operator(inputs)


WEIGHTS = {
    "weight None": ("weight", lambda x: None, TypeError, ("weight must", "NoneType")),
    "weight int": ("weight", lambda x: x.long(), TypeError, ("weight must be", "torch.int64")),
    "weight 1-D": ("weight", lambda x: x[0], ValueError, ("weight must be [heads", "(3,)")),
    "weight slices": ("weight", lambda x: x[:, :2], ValueError, ("weight", "(3, 3)", "(3, 2)")),
    "weight heads": ("weight", lambda x: x[:1], ValueError, ("weight", "(3, 3)", "(1, 3)")),
    "query_weight list": ("query_weight", lambda x: [0.0], TypeError, ("query_weight", "list")),
    "query_weight int": ("query_weight", lambda x: x.int(), TypeError, ("query_weight", "int32")),
    "query_weight 3-D": ("query_weight", lambda x: x[None], ValueError, ("query_weight", "(1, 3")),
    "query_weight width": (
        "query_weight",
        lambda x: x[:, :4],
        ValueError,
        ("query_weight", "(3, 5)", "(3, 4)"),
    ),
}


@every(WEIGHTED)
@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_weights(operator, case):
    name, change, error, parts = case
    inputs = wrong(make_inputs(), name, change)
    with refused(error, *parts):
        operator(inputs)


OPTIONS = {
    "eps 0": ({"eps": 0.0}, ValueError, ("eps must be", "> 0", "0.0")),
    "eps negative": ({"eps": -2.5}, ValueError, ("eps must be", "> 0", "-2.5")),
    "eps nan": ({"eps": float("nan")}, ValueError, ("eps must be finite", "nan")),
    "eps inf": ({"eps": float("inf")}, ValueError, ("eps must be finite", "inf")),
    "eps str": ({"eps": "1"}, TypeError, ("eps must be a number", "'1'")),
    "eps bool": ({"eps": True}, TypeError, ("eps must be a number", "True")),
    "eps complex": ({"eps": 1j}, TypeError, ("eps must be a number", "1j")),
    "eps None": ({"eps": None}, TypeError, ("eps must be a number", "None")),
    "scale nan": ({"scale": float("nan")}, ValueError, ("scale must be finite", "nan")),
    "scale inf": ({"scale": float("-inf")}, ValueError, ("scale must be finite", "-inf")),
    "scale str": ({"scale": "auto"}, TypeError, ("scale must be a number", "'auto'")),
    "scale bool": ({"scale": False}, TypeError, ("scale must be a number", "False")),
    "backend": ({"backend": "cuda"}, ValueError, ("backend", "auto, reference, triton", "'cuda'")),
}


@every(QUERY_KEY_OPERATORS)
@pytest.mark.parametrize("case", OPTIONS.values(), ids=OPTIONS)
def test_temperature_and_backend(operator, case):
    options, error, parts = case
    inputs = make_inputs()
    with refused(error, *parts):
        operator(inputs, **options)


@every(QUERY_KEY_OPERATORS)
def test_kernels_are_refused_where_there_is_no_gpu(operator, monkeypatch):
    monkeypatch.setattr("asap_exp.ops.backend.INTERPRETED", False)
    inputs = make_inputs()
    with refused(RuntimeError, "backend='triton' cannot run", "on cpu"):
        operator(inputs, backend="triton")


@pytest.mark.parametrize("name", ["eps", "scale"])
def test_a_tensor_is_no_temperature(name):
    with pytest.raises(TypeError, match=rf"{name} must be a number, got tensor\(0.5"):
        OPERATORS["sinkhorn_attention"](make_inputs(), **{name: torch.tensor(0.5)})


COUNTS = {
    "zero": (0, ValueError, ("num_iters must be at least 1", "0")),
    "negative": (-3, ValueError, ("num_iters must be at least 1", "-3")),
    "float": (2.0, TypeError, ("num_iters must be an int", "2.0")),
    "bool": (True, TypeError, ("num_iters must be an int", "True")),
    "str": ("20", TypeError, ("num_iters must be an int", "'20'")),
    "None": (None, TypeError, ("num_iters must be an int", "None")),
}


@pytest.mark.parametrize(
    ("last", "error", "words"),
    [
        (0, ValueError, "gradient_updates must be at least 1, got 0"),
        (1.0, TypeError, "gradient_updates must be an int"),
        (21, ValueError, "gradient_updates=21 must not be above num_iters=20; leave it out"),
    ],
)
def test_gradient_updates_out_of_range(last, error, words):
    with pytest.raises(error, match=words):
        OPERATORS["sinkhorn_attention"](make_inputs(), num_iters=20, gradient_updates=last)


@pytest.mark.parametrize(
    ("steps", "last", "error", "words"),
    [
        (0, None, ValueError, "implicit_steps must be at least 1, got 0"),
        (True, None, TypeError, "implicit_steps must be an int"),
        (5, 2, ValueError, "implicit_steps=5 must not be given with gradient_updates=2: .* out"),
    ],
)
def test_implicit_steps_out_of_range(steps, last, error, words):
    with pytest.raises(error, match=words):
        OPERATORS["sinkhorn_attention"](make_inputs(), implicit_steps=steps, gradient_updates=last)


@pytest.mark.parametrize("name", ["sinkhorn_attention", "sinkhorn_duals"])
@pytest.mark.parametrize("case", COUNTS.values(), ids=COUNTS)
def test_number_of_updates(name, case):
    num_iters, error, parts = case
    inputs = make_inputs()
    with refused(error, *parts):
        OPERATORS[name](inputs, num_iters=num_iters)


@pytest.mark.parametrize(
    ("refine", "error", "says"),
    [
        (-1, ValueError, "at least 0, got -1"),
        (0.5, TypeError, "an int, got 0.5"),
        (False, TypeError, "an int, got False"),
    ],
)
@every(WEIGHTED)
def test_refinement(operator, refine, error, says):
    inputs = make_inputs()
    with refused(error, "refine must be", says):
        operator(inputs, refine=refine)


MASKS = {
    "int": (lambda x: x.int(), TypeError, ("key_padding_mask must be a bool", "torch.int32")),
    "float": (lambda x: x.float(), TypeError, ("key_padding_mask must be", "torch.float32")),
    "list": (lambda x: x.tolist(), TypeError, ("key_padding_mask must be", "list")),
    "tokens": (lambda x: x[:, :6], ValueError, ("key_padding_mask", "(2, 7)", "(2, 6)")),
    "batch": (lambda x: x[:1], ValueError, ("key_padding_mask", "(2, 7)", "(1, 7)")),
    "1-D": (lambda x: x[0], ValueError, ("key_padding_mask", "(2, 7)", "(7,)")),
    "plan": (lambda x: x[:, :, None], ValueError, ("key_padding_mask", "(2, 7)", "(2, 7, 1)")),
    "device": (lambda x: x.to("meta"), ValueError, ("key_padding_mask is on meta", "cpu")),
}


@every(OPERATORS)
@pytest.mark.parametrize("case", MASKS.values(), ids=MASKS)
def test_masks(operator, case):
    change, error, parts = case
    inputs = make_inputs()
    mask = change(torch.zeros(2, 7, dtype=torch.bool))
    with refused(error, *parts):
        operator(inputs, key_padding_mask=mask)


@every(QUERY_KEY_OPERATORS)
def test_mask_of_cross_attention_is_refused_with_the_reason(operator):
    inputs = make_inputs(queries=7, keys=5)
    for tokens in (5, 7):
        mask = torch.zeros(2, tokens, dtype=torch.bool)
        with refused(ValueError, "key_padding_mask masks the same tokens", "7 queries and 5 keys"):
            operator(inputs, key_padding_mask=mask)


@pytest.mark.parametrize("case", ["q list", "q int", "q 3-D", "q no token", "q no channel"])
def test_queries_of_the_query_features(case):
    _, change, error, parts = TENSORS[case]
    inputs = wrong(make_inputs(), "q", change)
    with refused(error, *parts):
        OPERATORS["query_features"](inputs)
