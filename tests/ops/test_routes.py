"""The routes that calls take: a pinned table, forced routes, and the answers of `explain`."""

import pytest
import torch

from asap_exp import ops
from asap_exp.ops import backend
from asap_exp.ops.call import Call, Device, as_if
from tests.ops.inputs import OPERATORS, Inputs, make_inputs

if backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.ops import routes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
HOPPER, AMPERE, BLACKWELL = (9, 0), (8, 0), (10, 0)

CLOSURE, PLAN = "keys and values in registers", "plan in shared memory"
BFLOAT, LOGITS = "tiled, bfloat16", "logits in registers"
KEYS, TILED, CHIP = "keys in registers", "tiled", "plan on chip"


@pytest.mark.parametrize(
    ("n", "num_iters", "dtype", "more", "route"),
    [
        (64, 1, BRAIN, {}, LOGITS),
        (128, 1, BRAIN, {}, LOGITS),
        (129, 1, BRAIN, {}, CLOSURE),
        (256, 1, BRAIN, {}, CLOSURE),
        (257, 1, BRAIN, {}, BFLOAT),
        (200, 1, BRAIN, {"capability": AMPERE}, BFLOAT),
        (200, 1, BRAIN, {"capability": BLACKWELL}, BFLOAT),
        (200, 1, BRAIN, {"head_dim": 128}, BFLOAT),
        (200, 1, BRAIN, {"value_dim": 65}, BFLOAT),
        (200, 1, BRAIN, {"constant_logits": True}, TILED),
        (200, 1, BRAIN, {"gradient": True}, TILED),
        (200, 1, HALF, {}, TILED),
        (200, 1, BRAIN, {"m": 20}, CLOSURE),
        (64, 20, BRAIN, {}, LOGITS),
        (65, 20, BRAIN, {}, PLAN),
        (65, 9, BRAIN, {}, LOGITS),
        (128, 10, BRAIN, {}, PLAN),
        (128, 20, BRAIN, {"capability": AMPERE}, LOGITS),
        (129, 3, BRAIN, {}, KEYS),
        (129, 4, BRAIN, {}, PLAN),
        (200, 4, BRAIN, {}, PLAN),
        (200, 20, BRAIN, {}, CHIP),
        (200, 20, BRAIN, {"capability": AMPERE}, KEYS),
        (200, 20, BRAIN, {"gradient": True}, CHIP),
        (200, 4, BRAIN, {"gradient": True}, KEYS),
        (200, 20, BRAIN, {"head_dim": 65}, KEYS),
        (200, 20, BRAIN, {"constant_logits": True}, CHIP),
        (257, 20, BRAIN, {}, KEYS),
        (512, 20, HALF, {}, CHIP),
        (512, 9, HALF, {}, KEYS),
        (1024, 20, BRAIN, {}, CHIP),
        (513, 2, BRAIN, {}, BFLOAT),
        (513, 20, HALF, {}, TILED),
        (1000, 20, BRAIN, {"m": 200}, CHIP),
        (1000, 20, BRAIN, {"m": 150}, KEYS),
        (128, 20, SINGLE, {}, LOGITS),
        (65, 20, SINGLE, {"head_dim": 65}, TILED),
        (200, 20, SINGLE, {}, TILED),
    ],
)
def test_route_of_the_sinkhorn_operator(n, num_iters, dtype, more, route):
    options = {"capability": HOPPER, "num_iters": num_iters, "dtype": dtype} | more
    found = ops.explain("sinkhorn_attention", n=n, **options)
    assert found.backend == "triton"
    assert found.taken[0] == ("sinkhorn", route)


@pytest.mark.parametrize(
    ("n", "more", "taken"),
    [
        (64, {}, {"asap": "one operator", "short_asap": "one launch"}),
        (64, {"refine": 1}, {"short_asap": "one launch"}),
        (64, {"refine": 1, "batch": 529}, {"short_asap": "separate launches"}),
        (64, {"refine": 1, "batch": 528}, {"short_asap": "one launch"}),
        (64, {"refine": 1, "batch": 529, "logit_features": True}, {"short_asap": "one launch"}),
        (64, {"slices": 17}, {"asap": "separate operators", "dual_sort": "one program per head"}),
        (65, {}, {"asap": "separate operators", "sinkhorn": LOGITS}),
        (64, {"m": 60}, {"asap": "separate operators", "sliced_dual": "reference"}),
        (64, {"gradient": True}, {"sliced_dual": "reference", "sinkhorn_backward": LOGITS}),
        (256, {}, {"dual_sort": "one program per head", "sinkhorn": CLOSURE}),
        (256, {"slices": 9}, {"dual_sort": "groups of slices"}),
        (256, {"dtype": SINGLE}, {"dual_sort": "groups of slices", "sinkhorn": TILED}),
        (257, {"slices": 1}, {"dual_sort": "groups of slices"}),
        (4096, {}, {"dual_sort": "groups of slices", "sinkhorn": BFLOAT}),
        (4097, {}, {"dual_sort": "torch.sort"}),
        (300, {"refine": 2, "relaxed": True}, {"relaxed_updates": "one call per update"}),
        (300, {"refine": 2, "relaxed": True, "gradient": True}, {"relaxed_updates": "reference"}),
    ],
)
def test_routes_of_asap(n, more, taken):
    found = ops.explain("asap_attention", n=n, capability=HOPPER, **more)
    assert taken.items() <= dict(found.taken).items()


@pytest.mark.parametrize(
    ("operator", "n", "more", "taken"),
    [
        ("softmax_attention", 200, {}, [("softmax", "PyTorch")]),
        ("softmax_attention", 200, {"padded": True, "dtype": SINGLE}, [("softmax", "PyTorch")]),
        (
            "softmax_attention",
            128,
            {"padded": True},
            [("softmax", "attention pass"), ("attention_pass", TILED)],
        ),
        (
            "softmax_attention",
            129,
            {"padded": True},
            [("softmax", "attention pass"), ("attention_pass", BFLOAT)],
        ),
        ("relaxed_sinkhorn_attention", 128, {}, [("relaxed_sinkhorn", LOGITS)]),
        ("sinkhorn_duals", 128, {}, [("sinkhorn", LOGITS)]),
        ("sinkhorn_duals", 1024, {}, [("sinkhorn", TILED)]),
        ("closure_attention", 200, {}, [("sinkhorn", CLOSURE)]),
        (
            "sliced_potentials",
            5000,
            {},
            [("sliced_potentials", "kernels"), ("potential_sort", "torch.sort")],
        ),
    ],
)
def test_routes_of_other_operators(operator, n, more, taken):
    assert ops.explain(operator, n=n, capability=HOPPER, **more).taken == taken


def inputs_for(**shape) -> Inputs:
    return make_inputs(dtype=SINGLE, **shape).map(lambda x: x.to(DEVICE))


EXPLAINED = {
    "sinkhorn_attention": {"num_iters": 3},
    "relaxed_sinkhorn_attention": {"num_iters": 3},
    "sinkhorn_duals": {"num_iters": 3},
    "closure_attention": {},
    "softmax_attention": {},
    "sliced_potentials": {"slices": 3},
    "asap_attention": {"slices": 3, "refine": 1},
    "predicted_dual": {"slices": 3, "refine": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("names", [[], ["separate operators", "updates, then closure"]])
@pytest.mark.parametrize("operator", EXPLAINED)
def test_explained_is_what_runs(operator, names):
    inputs, options = inputs_for(queries=6), EXPLAINED[operator]
    with routes.force(*names):
        with routes.recorded() as taken:
            OPERATORS[operator](inputs, backend="triton")
        found = ops.explain(operator, inputs.q, inputs.k, inputs.v, backend="triton", **options)
    assert set(found.taken) == set(taken)


BACKWARDS = {
    "through all": {},
    "through the last": {"gradient_updates": 2},
    "through as many as there are": {"gradient_updates": 3},
    "implicit": {"implicit_steps": 2},
    "implicit, one update": {"implicit_steps": 2, "num_iters": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("queries", [6, 140])
@pytest.mark.parametrize("backward", BACKWARDS)
def test_explained_with_a_gradient_is_what_runs(backward, queries):
    inputs = inputs_for(batch=1, heads=1, queries=queries)
    q = inputs.q.requires_grad_()
    options = {"num_iters": 3, "backend": "triton"} | BACKWARDS[backward]
    with routes.recorded() as taken:
        ops.sinkhorn_attention(q, inputs.k, inputs.v, **options).sum().backward()
    found = ops.explain(ops.sinkhorn_attention, q, inputs.k, inputs.v, **options)
    assert found.taken == taken
    implicit = "implicit" in backward
    assert taken[-1].operator == ("implicit_backward" if implicit else "sinkhorn_backward")
    assert len(taken) == 2


def test_explanation_names_the_backward_pass():
    options = {"n": 200, "gradient": True, "capability": HOPPER}
    names = {
        option: [
            line.strip()
            for line in str(ops.explain("sinkhorn_attention", **options, **more)).splitlines()
        ]
        for option, more in (
            ("unrolled", {}),
            ("last", {"gradient_updates": 4}),
            ("implicit", {"implicit_steps": 5}),
        )
    }
    for option in ("unrolled", "last"):
        assert "sinkhorn_backward" in names[option]
        assert "implicit_backward" not in names[option]
    assert "implicit_backward" in names["implicit"]
    assert "sinkhorn_backward" not in names["implicit"]
    assert "gradient_updates" not in names["unrolled"][0]
    assert "gradient, num_iters = 20, gradient_updates = 4;" in names["last"][0]
    assert "gradient, num_iters = 20, implicit_steps = 5;" in names["implicit"][0]


def test_backward_pass_is_not_explained_without_a_gradient():
    plain = ops.explain("sinkhorn_attention", n=200, capability=HOPPER)
    for option in ("gradient_updates", "implicit_steps"):
        found = ops.explain("sinkhorn_attention", n=200, capability=HOPPER, **{option: 3})
        assert found.taken == plain.taken


@pytest.mark.parametrize(
    ("operator", "options", "reason"),
    [
        ("closure_attention", {"implicit_steps": 3}, "option of .* and coarse_attention, not of"),
        ("coarse_attention", {"gradient_updates": 3}, "option of sinkhorn_attention, not of coa"),
        ("coarse_attention", {"implicit_steps": 3, "one_pass": True}, "implicit_steps=3"),
        ("sinkhorn_attention", {"gradient_updates": 21}, "must not be above num_iters=20"),
        ("sinkhorn_attention", {"implicit_steps": 0}, "implicit_steps must be at least 1"),
        ("sinkhorn_attention", {"implicit_steps": 1, "gradient_updates": 1}, "leave one out"),
    ],
)
def test_backward_pass_that_an_operator_has_not_is_not_explained(operator, options, reason):
    with pytest.raises(ValueError, match=reason):
        ops.explain(operator, n=200, gradient=True, capability=HOPPER, **options)


def test_explanation_names_every_route_with_its_reason():
    lines = str(ops.explain("sinkhorn_attention", n=200, capability=HOPPER)).splitlines()
    assert lines == [
        "sinkhorn_attention: n = 200, m = 200, head_dim = 64, value_dim = 64, bfloat16, "
        "num_iters = 20; compute capability 9.0, 132 multiprocessors",
        "  sinkhorn",
        "    plan on chip                  taken",
        "    keys and values in registers  refused: runs a single update, got num_iters=20",
        "    plan in shared memory         later: an earlier route takes the call",
        "    tiled, bfloat16               slower: is the fastest only beyond 512 keys",
        "    logits in registers           refused: takes up to 128 tokens, got 200",
        "    keys in registers             later: an earlier route takes the call",
        "    tiled                         later: an earlier route takes the call",
        "  reference                       not taken: the kernels take the call",
    ]


@pytest.mark.parametrize(
    ("operator", "options", "reason"),
    [
        ("sinkhorn_attention", {"backend": "reference"}, "it was requested"),
        ("sinkhorn_attention", {"capability": (8, 6)}, "the shared memory of an A100"),
        ("sinkhorn_attention", {"dtype": torch.float64}, "q is torch.float64"),
        ("sinkhorn_attention", {"value_dim": 160}, "v has width 160"),
        ("sinkhorn_duals", {"gradient": True}, "for which there is no fused kernel"),
        ("softmax_attention", {"gradient": True}, "for which there is no fused kernel"),
    ],
)
def test_explanation_of_the_reference(operator, options, reason):
    found = ops.explain(operator, n=200, **({"capability": HOPPER} | options))
    assert (found.backend, found.choices) == ("reference", ())
    last = str(found).splitlines()[-1]
    assert last.split()[0] == "reference"
    assert f"taken: {reason}" in last or reason in found.refusal


def test_explanation_without_tokens_or_of_an_unknown_operator():
    with pytest.raises(ValueError, match=r"needs tensors .* or the number of tokens n"):
        ops.explain("sinkhorn_attention")
    with pytest.raises(ValueError, match=r"operator must be one of .*, got 'sinkhorn'"):
        ops.explain("sinkhorn", n=3)


@pytest.mark.parametrize("options", [{}, {"refine": 2, "gradient": True}, {"one_pass": True}])
@pytest.mark.parametrize(
    ("of_map", "of_tensors"),
    [(ops.map_attention, ops.asap_attention), (ops.map_dual, ops.predicted_dual)],
)
def test_operators_that_take_a_map_as_one_object_are_explained(of_map, of_tensors, options):
    found, same = (
        ops.explain(operator, n=200, capability=HOPPER, **options)
        for operator in (of_map, of_tensors)
    )
    assert (found.choices, found.refusal) == (same.choices, same.refusal)
    assert str(found) == str(same).replace(of_tensors.__name__, of_map.__name__, 1)
    assert ops.explain(of_map.__name__, n=200, capability=HOPPER, **options) == found


@pytest.mark.parametrize(
    ("operator", "got"), [(torch.zeros(1, 1, 2, 4), "Tensor"), (5, "int"), (None, "NoneType")]
)
def test_what_is_no_operator_is_refused_as_a_wrong_name_is(operator, got):
    with pytest.raises(ValueError, match=rf"^operator must be one of sinkhorn_.*, got {got}$"):
        ops.explain(operator, n=3)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("sinkhorn_attention", {"num_iters": "20", "gradient_updates": 3}),
        ("coarse_attention", {"one_pass": torch.zeros(2)}),
    ],
)
def test_argument_of_a_wrong_type_is_named_before_others_are_compared_with_it(operator, options):
    with pytest.raises(TypeError, match=f"^{next(iter(options))} must be"):
        ops.explain(operator, n=3, **options)


@pytest.mark.slow
def test_forced_route_is_taken_and_then_no_longer():
    inputs = inputs_for(queries=6)

    def run() -> list[str]:
        with routes.recorded() as taken:
            ops.sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=2, backend="triton")
        return [route for _, route in taken]

    assert run() == [LOGITS]
    with routes.force(TILED):
        assert run() == [TILED]
        with routes.force(LOGITS, TILED):
            assert run() == [LOGITS]
        assert run() == [TILED]
    assert run() == [LOGITS]


def test_forced_route_that_cannot_take_the_call():
    inputs = inputs_for(queries=6)
    with (
        routes.force(PLAN, CLOSURE),
        pytest.raises(RuntimeError, match=r"forced .*'plan in shared memory': takes bfloat16"),
    ):
        ops.sinkhorn_attention(inputs.q, inputs.k, inputs.v, num_iters=2, backend="triton")


def test_unknown_route_is_refused():
    with (
        pytest.raises(ValueError, match=r"no route is called 'short'; the routes are .*tiled"),
        routes.force("short"),
    ):
        pass


@pytest.mark.slow
def test_forced_route_in_a_compiled_function():
    inputs = inputs_for(queries=6)
    fit = (inputs.theta, inputs.weight, inputs.query_weight)

    def attention(q):
        return ops.asap_attention(q, inputs.k, inputs.v, *fit, backend="triton")

    expected = attention(inputs.q)
    with routes.force("separate operators"), routes.recorded() as taken:
        found = torch.compile(attention, fullgraph=True, backend="aot_eager")(inputs.q)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert taken == [("dual_sort", "groups of slices"), ("sinkhorn", LOGITS)]


def test_device_can_be_pretended():
    q = torch.zeros(1, 1, 200, 64, dtype=BRAIN, device=DEVICE)
    taken = []
    for capability in (HOPPER, AMPERE):
        with as_if(Device(capability, 132)):
            taken += ops.explain("sinkhorn_attention", q, backend="triton").taken
    assert [route for _, route in taken] == [CHIP, KEYS]


def test_last_route_of_every_list_takes_everything_that_gets_there():
    call = Call(10_000, 10, 128, 128, SINGLE, SINGLE, num_iters=3, gradient=True, slices=500)
    for operator, listed in routes.ROUTES.items():
        last = listed[-1]
        assert last.refusal(call) is None, operator
        assert last.slower(call) is None, operator


def test_calls_are_hashable_and_alike():
    call = Call(10, 10, 8, 8, SINGLE, SINGLE)
    assert {call, call._replace(num_iters=1)} == {call}


def test_a_subset_is_explained_by_its_size():
    """`explain` takes the arguments of the call, the subset itself included."""
    q = torch.randn(1, 1, 20, 8)
    subset = ops.choose_subset(q, 5)
    found = ops.explain(ops.coarse_attention, q, q, q, subset=subset)
    assert found == ops.explain(ops.coarse_attention, q, q, q, subset=5)
    assert found.call.subset == 5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n": 0}, ValueError, "n must be at least 1, got 0"),
        ({"n": 9.0}, TypeError, "n must be an int, got 9.0"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1"),
        ({"num_iters": 0}, ValueError, "num_iters must be at least 1"),
        ({"subset": "a"}, TypeError, "subset must be an int, got 'a'"),
        ({"subset": 0}, ValueError, "subset must be at least 1"),
        ({"slices": -1}, ValueError, "slices must be at least 0"),
        ({"padded": 1}, TypeError, "padded must be True or False, got 1"),
        ({"dtype": "bf16"}, TypeError, "dtype must be a torch.dtype"),
        ({"capability": 9}, TypeError, "capability must be a pair of ints"),
        ({"capability": (9,)}, TypeError, "capability must be a pair of ints"),
        ({"q": torch.zeros(4, 8)}, ValueError, "q must be"),
    ],
)
def test_what_no_call_can_have_is_not_explained(options, error, words):
    with pytest.raises(error, match=words):
        ops.explain("coarse_attention", **({} if "q" in options else {"n": 64}) | options)
