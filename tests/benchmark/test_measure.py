"""The contents of a cell: a time, or a status with a reason."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from asap_exp.benchmark import (  # noqa: F401  (they register their methods)
    baselines,
    cheaper_gradients,
    operators,
    passes,
)
from asap_exp.benchmark.accuracy_check import right
from asap_exp.benchmark.baselines import softmax_attention
from asap_exp.benchmark.calls import results
from asap_exp.benchmark.inputs import Inputs, Place, largest_logit_of
from asap_exp.benchmark.measure import measure
from asap_exp.benchmark.operators import blockwise_teacher
from asap_exp.benchmark.registry import (
    BUILDERS,
    Method,
    Operator,
    Setting,
    build,
    find,
    of_any_heads,
)
from asap_exp.benchmark.shape import Shape
from asap_exp.core.errors import UserError
from asap_exp.ops import sinkhorn_attention
from asap_exp.ops.backend import INTERPRETED

SHAPE = Shape(batch=3, heads=2, n=8, head_dim=4)
SETTING = Setting(SHAPE, torch.device("cpu"), "reference", seed=0)
NAMES = (
    "flash", "sinkhorn_3", "sinkhorn_eager_3", "closure", "asap_2", "asap_2_refine_1", "coarse_4",
    "coarse_4_one_pass", "sinkhorn_3_last_2", "sinkhorn_3_implicit_2", "coarse_4_refine_2",
)  # fmt: skip


def inputs(*, train: bool = False, dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad_out = (torch.randn(SHAPE.size, generator=generator).to(dtype) for _ in range(4))
    q, k, v = (x.requires_grad_(train) for x in (q, k, v))
    return Inputs(q, k, v, grad_out if train else None)


def softmax(*attends: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Method:
    """Make a method with these operators, each of which should be row softmax."""
    named = {f"operator {number}": Operator(attend) for number, attend in enumerate(attends)}
    return Method("softmax", "pytorch", named, of_any_heads(softmax_attention))


def cell(method: Method, data: Inputs) -> dict[str, Any]:
    flash = build("flash", SETTING)
    return measure({"flash": flash, "it": method}, data, rounds=3, cuda_graph=False)["it"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [False, True])
def test_every_method_is_right_and_timed(train: bool, dtype: torch.dtype) -> None:
    methods = {name: build(name, SETTING) for name in NAMES}
    measured = measure(methods, inputs(train=train, dtype=dtype), rounds=3, cuda_graph=False)
    for name, found in measured.items():
        assert found["status"] == "timed", (name, found["message"])
        assert found["ms"]["q1"] <= found["ms"]["median"] <= found["ms"]["q3"]
        assert set(found["gate_errors"]) == ({"out", "dq", "dk", "dv"} if train else {"out"})
        assert found["peak_memory_mib"] > 0
    flash = measured["flash"]
    assert flash["ratio"] == 1.0
    median = measured["closure"]["ms"]["median"]
    assert measured["closure"]["ratio"] == median / flash["ms"]["median"]


PASSES = ("closure_flex", "attention_pass", "attention_pass_flex")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="kernels take tensors of the CPU there")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=interpreted)])
def test_passes_of_the_closure_by_themselves_are_right(backend: str) -> None:
    setting = Setting(SHAPE, torch.device("cpu"), backend, seed=0)
    methods = {name: build(name, setting) for name in PASSES}
    measured = measure(methods, inputs(), rounds=3, cuda_graph=False)
    assert [found["status"] for found in measured.values()] == ["timed"] * 3, measured
    assert all(0 < found["gate_errors"]["out"] < 1e-6 for found in measured.values())
    ours = {"reference": [], "triton": ["attention_pass: tiled"]}[backend]
    assert measured["attention_pass"]["routes"] == ours
    assert measured["attention_pass_flex"]["routes"] == []


@pytest.mark.slow
@interpreted
def test_cell_names_the_routes_of_its_kernels() -> None:
    fused = Setting(SHAPE, torch.device("cpu"), "triton", seed=0)
    found = cell(build("sinkhorn_3", fused), inputs(train=True))
    registers = "logits in registers"
    assert found["routes"] == [f"sinkhorn: {registers}", f"sinkhorn_backward: {registers}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sinkhorn_3_last_1", "sinkhorn_3_implicit_1"])
def test_gradient_of_a_cheaper_method_is_not_the_exact_one(name: str) -> None:
    """Else the row of another gradient would be timed."""
    cheaper, exact = build(name, SETTING), build("sinkhorn_3", SETTING)
    data = inputs(train=True, dtype=torch.float64)
    one, other = (
        torch.autograd.grad(way.attend(data.q, data.k, data.v), data.q, data.grad_out)[0]
        for method in (cheaper, exact)
        for way in method.operators.values()
    )
    assert not torch.allclose(one, other, rtol=1e-3)


@pytest.mark.slow
@interpreted
def test_pass_without_a_gradient_is_unavailable_in_training() -> None:
    fused = Setting(SHAPE, torch.device("cpu"), "triton", seed=0)
    for name in PASSES:
        refused = cell(build(name, fused), inputs(train=True))
        assert refused["status"] == "unavailable"
        assert "gradient" in refused["message"]


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_gate_of_one_head_is_that_of_all(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of one head agrees with that of all; a wrong last head is found."""
    monkeypatch.setattr("asap_exp.benchmark.accuracy_check.GATED_ENTRIES", 1)
    methods = {name: build(name, SETTING) for name in NAMES}
    for found in measure(methods, inputs(train=train), rounds=3, cuda_graph=False).values():
        assert found["status"] == "timed"
        assert max(found["gate_errors"].values()) < 1e-5

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax_attention(q, k, v) * torch.tensor([1.0, 1.1])[:, None, None]

    assert cell(softmax(attend), inputs(train=train))["status"] == "wrong"


def test_error_of_tf32_products_is_right_for_a_method_that_asks_for_them() -> None:
    errors = {"out": 2e-3}
    assert not right(errors, torch.float32)
    assert right(errors, torch.float32, tf32=True)
    assert right({"out": 1e-2}, torch.bfloat16, tf32=True)


@pytest.mark.parametrize("entries", [1, 3 * SHAPE.heads * SHAPE.n, 2**25])
def test_references_in_blocks_are_the_definitions(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks of one row, of three (the last has two), and of all."""
    monkeypatch.setattr("asap_exp.benchmark.blocks.BLOCK_ENTRIES", entries)
    data = inputs(train=True).exact(Place(0, slice(None)))
    found = results(partial(blockwise_teacher, num_iters=4), data)
    expected = results(partial(sinkhorn_attention, num_iters=4), data)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    softmax = results(softmax_attention, data)
    dense = results(torch.nn.functional.scaled_dot_product_attention, data)
    torch.testing.assert_close(softmax, dense, rtol=1e-12, atol=1e-14)
    q, k, _ = data.qkv
    largest = (q @ k.transpose(-1, -2)).abs().max().item() * SHAPE.head_dim**-0.5
    assert largest_logit_of(data) == pytest.approx(largest, rel=1e-6)


def test_wrong_method_has_its_error_and_no_time() -> None:
    wrong = cell(softmax(lambda q, k, v: 1.01 * softmax_attention(q, k, v)), inputs())
    assert wrong["status"] == "wrong"
    assert wrong["gate_errors"]["out"] == pytest.approx(0.01, rel=1e-3)
    assert wrong["ms"] is wrong["ratio"] is None


@pytest.mark.parametrize("sample", [0, -1])
def test_method_that_is_wrong_in_one_sample_is_wrong(sample: int) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = softmax_attention(q, k, v)
        out[sample] = float("nan")
        return out

    assert cell(softmax(attend), inputs())["status"] == "wrong"


class WrongGradient(torch.autograd.Function):
    """The identity, with a gradient that is a tenth too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 1.1 * gradients[0]


def test_wrong_gradient_is_wrong_where_it_is_timed() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax_attention(q, WrongGradient.apply(k), v)

    assert cell(softmax(attend), inputs())["status"] == "timed"
    wrong = cell(softmax(attend), inputs(train=True))
    assert wrong["status"] == "wrong"
    assert wrong["gate_errors"]["dk"] == pytest.approx(0.1, rel=1e-3)
    assert wrong["gate_errors"]["dq"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried much"), ValueError("CUDA\nno")]
)
def test_exception_is_an_error_cell_with_its_first_line(error: Exception) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise error

    broken = cell(softmax(attend), inputs())
    assert broken["status"] == "error"
    assert broken["message"] == f"{type(error).__name__}: {str(error).splitlines()[0]}"
    assert broken["ms"] is None


def fits(samples: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return row softmax that runs out of memory for more than this many samples."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(q) > samples:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
            finally:
                if samples == 2:  # as a failed capture of a CUDA graph ends
                    raise RuntimeError("operation failed due to a previous error during capture")
        return softmax_attention(q, k, v)

    return attend


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "measured"), [(1, 1), (2, 2), (3, 2), (5, 5)])
def test_method_that_needs_too_much_memory_is_measured_on_fewer_samples(
    samples: int, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "asap_exp.benchmark.measure.interleaved_latency",
        lambda calls, *_, **__: {key: {"median": 1.0, "q1": 1.0, "q3": 1.0} for key in calls},
    )
    five = Inputs(*(torch.cat([x, x[:2]]) for x in inputs().qkv))
    whole, found = (cell(softmax(fits(n)), five) for n in (5, samples))
    assert found["batch_measured"] == measured
    assert found["status"] == ("timed" if measured == 5 else "scaled")
    assert measured == 5 or found["message"].endswith("since more do not fit in memory")
    assert found["ms"]["median"] == 5 / measured
    assert found["peak_memory_mib"] == pytest.approx(whole["peak_memory_mib"])
    assert found["ratio"] == found["ms"]["median"]


@pytest.mark.slow
def test_method_that_takes_too_long_is_measured_on_fewer_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asap_exp.benchmark.measure.PATIENCE_SECONDS", 0.1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        time.sleep(0.15 * (len(q) - 1))
        return softmax_attention(q, k, v)

    found = cell(softmax(attend), inputs())
    assert (found["status"], found["scaled_from"]) == ("scaled", "1/3")
    assert found["message"].endswith("since more take too long")


def test_reference_for_which_memory_does_not_suffice_is_an_error_of_the_whole_batch() -> None:
    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    method = Method("it", "pytorch", {"it": Operator(softmax_attention)}, of_any_heads(exact))
    broken = cell(method, inputs())
    assert (broken["status"], broken["batch_measured"]) == ("error", 3)


@pytest.mark.slow
def test_method_for_which_memory_never_suffices_is_an_error() -> None:
    broken = cell(softmax(fits(0)), inputs())
    assert (broken["status"], broken["batch_measured"]) == ("error", 1)
    assert broken["message"].startswith("OutOfMemoryError")


def test_method_that_breaks_while_it_is_timed_is_an_error() -> None:
    calls = iter(range(5))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise RuntimeError("too late")
        return softmax_attention(q, k, v)

    broken = cell(softmax(attend), inputs())
    assert (broken["status"], broken["message"]) == ("error", "RuntimeError: too late")


@pytest.mark.slow
def test_backend_that_cannot_run_is_unavailable_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With Triton's interpreter, the kernels run on a CPU too.
    monkeypatch.setattr("asap_exp.ops.backend.INTERPRETED", False, raising=False)
    fused = Setting(SHAPE, torch.device("cpu"), "triton", seed=0)
    for name in ("sinkhorn_3", "closure", "asap_2"):
        refused = cell(build(name, fused), inputs())
        assert refused["status"] == "unavailable"
        assert "not on a CUDA device" in refused["message"]


@pytest.mark.slow
def test_method_without_a_gradient_is_unavailable_in_training() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax_attention(q, k, v).detach()

    assert cell(softmax(attend), inputs(train=True))["message"] == "it has no gradient"


@pytest.mark.slow
def test_fastest_operator_that_runs_is_the_method() -> None:
    def slow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for _ in range(50):
            softmax_attention(q, k, v)
        return softmax_attention(q, k, v)

    def broken(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise RuntimeError("no kernel")

    found = cell(softmax(broken, slow, softmax_attention), inputs())
    assert (found["operator"], found["status"]) == ("operator 2", "timed")
    others = found["other_operators"]
    assert others["operator 0"]["message"] == "RuntimeError: no kernel"
    assert others["operator 1"]["ms"]["median"] > found["ms"]["median"]


def test_name_holds_the_numbers_of_its_method() -> None:
    assert find("asap_16_refine_2") == (
        BUILDERS["asap_{slices}_refine_{refine}"],
        {"slices": 16, "refine": 2},
    )


@pytest.mark.parametrize("name", ["asap", "asap_0", "sinkhorn_x", "asap_8_refine", "flashy"])
def test_unknown_method_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"the method {name} is not known.*asap_\{{slices\}}.*uniform"
    ):
        find(name)


def test_registered_attention_is_a_method() -> None:
    found = cell(build("uniform", SETTING), inputs(train=True))
    assert found["status"] == "timed"
    assert found["gate_errors"]["dq"] == 0.0
