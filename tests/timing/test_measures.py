"""Each measure of an evaluation against a direct computation."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch

from asap_exp.attention import CoarseAttention, LayerInputs, SinkhornAttention
from asap_exp.attention.base import Attention
from asap_exp.calibration.prediction_fit import divergence
from asap_exp.core.config import LatencyConfig
from asap_exp.core.errors import UserError
from asap_exp.evaluate.accuracy import Comparison, compare
from asap_exp.timing import calls
from asap_exp.timing.accuracy_check import gate_error, passes
from asap_exp.timing.latency import Call, Prepare, interleaved_latency, quartiles
from asap_exp.timing.memory import peak_memory

CPU = torch.device("cpu")


def test_accuracy_agreement_and_kl() -> None:
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 1])
    measured = compare(student, teacher, labels)
    assert measured["accuracy"] == 0.25
    assert measured["agreement"] == 0.5
    p, r = teacher.softmax(-1), student.softmax(-1)
    assert measured["kl"] == pytest.approx((p * (p / r).log()).sum(-1).mean().item(), rel=1e-6)


def test_a_model_compared_with_itself() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    measured = compare(logits, logits, logits.argmax(-1))
    assert measured["accuracy"] == measured["agreement"] == 1.0
    assert measured["kl"] == pytest.approx(0.0, abs=1e-7)


def test_class_that_the_teacher_leaves_out_adds_nothing_to_the_kl() -> None:
    teacher = torch.tensor([[2.0, 0.0, -torch.inf]])
    student = torch.tensor([[1.0, 0.0, 0.5]], requires_grad=True)
    p, r = teacher.softmax(-1)[0, :2], student.detach().softmax(-1)[0, :2]
    expected = (p * (p / r).log()).sum().item()
    assert compare(student.detach(), teacher, torch.tensor([0]))["kl"] == pytest.approx(expected)
    assert compare(teacher, teacher, torch.tensor([0]))["kl"] == 0
    divergence(student.log_softmax(-1), teacher.log_softmax(-1)).sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, student.detach().softmax(-1) - teacher.softmax(-1))


def test_predictions_of_nan_are_no_result() -> None:
    """Predictions with NaN are still ranked among the classes, so an accuracy exists."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    comparison = Comparison()
    comparison.add(logits, logits, torch.zeros(5, dtype=torch.long))
    comparison.require_defined("teacher")
    logits[2, 1] = torch.nan
    comparison.add(logits, logits, torch.zeros(5, dtype=torch.long))
    with pytest.raises(UserError, match="teacher predicts NaN for 1 of 10 targets"):
        comparison.require_defined("teacher")


def test_latency_tells_a_slow_call_from_a_fast_one() -> None:
    """The calls sleep rather than work, so the factor of ten holds on a busy machine too."""
    calls = {
        "slow": lambda: nullcontext(lambda: time.sleep(0.02)),
        "fast": lambda: nullcontext(lambda: time.sleep(0.002)),
    }
    ms = interleaved_latency(calls, CPU, rounds=5)
    assert ms["slow"]["median"] >= 20 > ms["fast"]["q1"]
    assert ms["fast"]["q1"] <= ms["fast"]["median"] <= ms["fast"]["q3"]


def test_every_call_is_timed_in_every_round() -> None:
    order: list[str] = []

    def call(name: str):
        return lambda: nullcontext(lambda: (order.append(name), time.sleep(0.003)))

    interleaved_latency({name: call(name) for name in "abc"}, CPU, rounds=4)
    timed = order[9:]  # after three warm-up calls each
    rounds = [timed[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1, "the order is drawn anew each round"


def test_slow_call_is_timed_in_some_of_the_rounds() -> None:
    calls = {"slow": 0, "fast": 0}

    def call(name: str, duration: float):
        def run() -> None:
            calls[name] += 1
            time.sleep(duration)

        return lambda: nullcontext(run)

    durations = {"slow": 0.06, "fast": 0.003}
    prepared = {name: call(name, duration) for name, duration in durations.items()}
    interleaved_latency(prepared, CPU, rounds=9, slow_rounds=3)
    assert calls == {"slow": 2 + 3, "fast": 3 + 9}, "two and three of them to warm up"


@pytest.mark.parametrize("good_calls", [0, 4])
def test_call_that_raises_is_reported_and_left_out(good_calls: int) -> None:
    """A call may fail in its warm-up or in a later round."""
    left = iter(range(good_calls))

    def breaks() -> None:
        if next(left, None) is None:
            raise MemoryError("full")
        time.sleep(0.003)

    calls = {
        "bad": lambda: nullcontext(breaks),
        "good": lambda: nullcontext(lambda: time.sleep(0.003)),
    }
    failures: dict[str, str] = {}
    ms = interleaved_latency(
        calls, CPU, rounds=4, failed=lambda name, error: failures.update({name: str(error)})
    )
    assert set(ms) == {"good"}
    assert failures == {"bad": "full"}


def test_calls_are_all_graphs_or_none_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def good() -> AbstractContextManager[Call]:
        return nullcontext(time.perf_counter)

    def waiting() -> AbstractContextManager[Call]:
        return good()

    def graph() -> AbstractContextManager[Call]:
        return good()

    def record(prepare: Prepare, pool: object) -> Prepare:
        if prepare is waiting:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return graph

    monkeypatch.setattr(calls, "captured", record)
    assert calls.as_graphs({"a": good, "b": good}) == ({"a": graph, "b": graph}, True)
    assert calls.as_graphs({"a": good, "b": waiting}) == ({"a": good, "b": waiting}, False)
    assert capsys.readouterr().out.count("not permitted when stream is capturing)") == 1
    with pytest.raises(
        UserError, match=r"recorded .*\(operation not .*; set of\.mine=false, which"
    ):
        calls.as_graphs({"b": waiting}, asked_by="of.mine")


def test_graphs_are_for_gpus() -> None:
    timing = LatencyConfig(batch_size=1, rounds=1)
    assert timing.on("latency", "cuda").cuda_graph is True
    assert timing.on("latency", "cpu").cuda_graph is False
    for kind in ("cuda", "cpu"):
        assert replace(timing, cuda_graph=False).on("latency", kind).cuda_graph is False
    with pytest.raises(UserError, match=r"latency\.cuda_graph=true needs a GPU; set .*=null"):
        replace(timing, cuda_graph=True).on("latency", "cpu")


def test_quartiles() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}


def test_peak_memory_counts_what_lives_at_once() -> None:
    x = torch.zeros(256, 1024)  # 1 MiB

    def one_after_the_other() -> torch.Tensor:
        y = x + 1
        del y
        return x + 2

    assert peak_memory(one_after_the_other, CPU) == pytest.approx(1.0)
    assert peak_memory(lambda: (x + 1).exp(), CPU) == pytest.approx(2.0)
    assert peak_memory(lambda: x.t(), CPU) == 0.0


class Wrong(Attention):
    """Attention that is right only in float64."""

    def forward(self, q, k, v, *, key_padding_mask=None):
        return v if v.dtype == torch.float64 else 1.01 * v

    def plan(self, q, k, *, key_padding_mask=None):
        raise AssertionError("not asked for")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_lets_the_right_pass_and_not_the_wrong(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 4, generator=generator).to(dtype) for _ in range(3))
    data = LayerInputs(q, k, v, None)
    assert passes(gate_error(SinkhornAttention(num_iters=3), data), dtype)
    assert not passes(gate_error(Wrong(), data), torch.float32)
    assert not passes(float("nan"), dtype)


def test_the_subset_of_the_check_is_that_of_what_is_timed() -> None:
    """In float64 another of two tokens that are almost alike may be taken, which is no error."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(1, 1, 6, 4, generator=generator)
    k = few.repeat(1, 1, 8, 1) + 1e-7 * torch.randn(1, 1, 48, 4, generator=generator)
    q, v = torch.randn(2, 1, 1, 48, 4, generator=generator)
    attend, inputs = CoarseAttention(tokens=5, subset="kmeans"), LayerInputs(q, k, v, None)
    apart = attend(q, k, v).double() - attend(q.double(), k.double(), v.double())
    assert apart.abs().max() > 1e-3, "the inputs are chosen so that the choices differ"
    assert gate_error(attend, inputs) < 1e-5
    apart = attend(q, k, v).double() - attend(q.double(), k.double(), v.double())
    assert apart.abs().max() > 1e-3, "nothing is kept beyond the check"
