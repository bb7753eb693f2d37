"""Methods of other libraries: the same transport, and what is said where they cannot run."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from asap_exp.benchmark import operators, peers  # noqa: F401  (they register their methods)
from asap_exp.benchmark.measure import measure
from asap_exp.benchmark.peers import head_by_head, transported
from asap_exp.benchmark.registry import build, installed
from asap_exp.core.errors import UserError
from asap_exp.ops import sinkhorn_attention, sinkhorn_duals
from asap_exp.ops.products import ONE_PASS, THREE_PASSES, float32_products
from tests.benchmark.test_measure import SETTING, inputs
from tests.stages import run_benchmark

SOLVER = "flash_sinkhorn.kernels.sinkhorn_flashstyle_sqeuclid"
GPU = replace(SETTING, device=torch.device("cuda"))


def costs(x: Tensor, y: Tensor, cost_scale: float) -> Tensor:
    return cost_scale * (x[:, None] - y).square().sum(dim=2)


class Dense:
    """What flash-sinkhorn's kernels compute, by their documentation: cost scale |x - y|^2.

    They take and return shifted potentials: those of the cost, less scale |x|^2.
    """

    def __init__(self) -> None:
        self.potentials: tuple[Tensor, ...] = ()
        self.tf32: set[bool] = set()

    def flashsinkhorn_lse_fused(
        self, x: Tensor, y: Tensor, g_hat: Tensor, log_w: Tensor, eps: float, *,
        cost_scale: float, allow_tf32: bool,
    ) -> Tensor:  # fmt: skip
        self.tf32.add(allow_tf32)
        g = g_hat + cost_scale * y.square().sum(dim=1)
        f = -eps * torch.logsumexp((g - costs(x, y, cost_scale)) / eps + log_w, dim=1)
        return f - cost_scale * x.square().sum(dim=1)

    def apply_plan_mat_flashstyle(
        self, x: Tensor, y: Tensor, f_hat: Tensor, g_hat: Tensor, log_a: Tensor, log_b: Tensor,
        mat: Tensor, *, eps: float, axis: int, cost_scale: float, allow_tf32: bool,
    ) -> Tensor:  # fmt: skip
        assert axis == 1
        self.tf32.add(allow_tf32)
        self.potentials = f_hat, g_hat
        f = f_hat + cost_scale * x.square().sum(dim=1)
        g = g_hat + cost_scale * y.square().sum(dim=1)
        logits = (f[:, None] + g - costs(x, y, cost_scale)) / eps
        return (logits + log_a[:, None] + log_b).exp() @ mat


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> Dense:
    """Install a dense flash-sinkhorn of version 0.4.1."""
    found = Dense()
    kernels, solver = ModuleType("flash_sinkhorn.kernels"), ModuleType(SOLVER)
    kernels.apply_plan_mat_flashstyle = found.apply_plan_mat_flashstyle
    solver.flashsinkhorn_lse_fused = found.flashsinkhorn_lse_fused
    for module in (ModuleType("flash_sinkhorn"), kernels, solver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("asap_exp.benchmark.registry.version", lambda package: "0.4.1")
    return found


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asap_exp.benchmark.registry.version", lambda package: None)


@pytest.mark.parametrize("num_iters", [1, 2, 20])
def test_transport_for_the_squared_distance_is_ours_after_as_many_updates(
    dense: Dense, num_iters: int
) -> None:
    q, k, v = (x[:1, :1].double() for x in inputs().qkv)
    out = transported(q[0, 0], k[0, 0], v[0, 0], num_iters=num_iters, tf32=False)
    expected = sinkhorn_attention(q, k, v, num_iters=num_iters, backend="reference")[0, 0]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    duals = sinkhorn_duals(q, k, num_iters=num_iters, backend="reference")
    eps = q.shape[3] ** 0.5
    row, col = (potential / eps for potential in dense.potentials)
    torch.testing.assert_close(row, duals.row[0, 0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(col, duals.col[0, 0], rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_kernels_of_flash_sinkhorn_compute_our_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "flash-sinkhorn is not installed (the extra `peers`)"
    solver = pytest.importorskip(SOLVER, reason=reason)
    import flash_sinkhorn.kernels as kernels

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(3, 1, 2, 40, 64, generator=generator)  # of q, k and v
    expected = sinkhorn_attention(*data.double(), num_iters=3, backend="reference")
    if torch.cuda.is_available():
        data = data.cuda()
    else:  # their checks want a GPU, and Triton's interpreter has no autotuning
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        for module, name in ((solver, "flashsinkhorn_lse_fused"),
                             (kernels, "apply_plan_mat_flashstyle")):  # fmt: skip
            untuned = functools.partial(getattr(module, name), autotune=False)
            monkeypatch.setattr(module, name, untuned)
    out = head_by_head(*data, num_iters=3)
    torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_method_is_right_and_timed(dense: Dense, dtype: torch.dtype) -> None:
    methods = {name: build(name, GPU) for name in ("flash_sinkhorn_3", "flash_sinkhorn_tf32_3")}
    found = measure(methods, inputs(dtype=dtype), rounds=3, cuda_graph=False)
    assert [cell["status"] for cell in found.values()] == ["timed"] * 2, found
    assert dense.tf32 == {False, True}
    assert methods["flash_sinkhorn_tf32_3"].label == "flash-sinkhorn T = 3, TF32"


@pytest.mark.slow
def test_method_has_no_gradient(dense: Dense) -> None:
    data = inputs(train=True)
    found = measure({"it": build("flash_sinkhorn_3", GPU)}, data, rounds=3, cuda_graph=False)
    assert (found["it"]["status"], found["it"]["message"]) == ("unavailable", "it has no gradient")


def test_tf32_is_allowed_to_the_methods_that_say_so_alone() -> None:
    for name, products in {"sinkhorn_tf32_3": ONE_PASS, "sinkhorn_3": THREE_PASSES}.items():
        (operator,) = build(name, SETTING).operators.values()
        with operator.context():
            assert float32_products() == products
        assert float32_products() == THREE_PASSES


NOT_INSTALLED = (
    "flash-sinkhorn is not installed; the extra `peers` has it: pip install -e '.[peers]'"
)


@pytest.mark.usefixtures("absent")
def test_method_that_is_not_installed_is_left_out_if_it_may_be() -> None:
    names, left_out = installed(["sinkhorn_3", "flash_sinkhorn_3?", "uniform?"])
    assert names == ["sinkhorn_3", "uniform"]
    assert left_out == [f"flash_sinkhorn_3 is left out: {NOT_INSTALLED}"]


@pytest.mark.usefixtures("absent")
@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (["sinkhorn_3", "flash_sinkhorn_3"], f"flash_sinkhorn_3 cannot run: {NOT_INSTALLED}"),
        (["flash_sinkhorn_3?"], f"no method is left to time: flash_sinkhorn_3 .*{NOT_INSTALLED}"),
        (["flash_sinkhorn?"], "the method flash_sinkhorn is not known"),
    ],
)
def test_method_that_is_not_installed_is_refused_with_what_to_install(
    methods: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        installed(methods)


@pytest.mark.usefixtures("dense")
def test_method_that_is_named_twice_is_timed_once() -> None:
    assert installed(["flash_sinkhorn_3?", "flash_sinkhorn_3"]) == (["flash_sinkhorn_3"], [])


METHODS = ("cpu.n=[4]", "cpu.methods=[flash,flash_sinkhorn_2?]")


@pytest.mark.slow
@pytest.mark.usefixtures("absent")
def test_record_without_it_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    record = recorded(tmp_path)
    assert [cell["method"] for cell in record["rows"][0]["cells"]] == ["flash"]
    assert record["left_out"] == [f"flash_sinkhorn_2 is left out: {NOT_INSTALLED}"]
    assert "flash_sinkhorn_2 is left out" in capsys.readouterr().out
    assert "flash-sinkhorn" not in record["manifest"]["versions"]


@pytest.mark.slow
@pytest.mark.usefixtures("dense")
def test_record_with_it_has_its_version_and_why_it_did_not_run(tmp_path: Path) -> None:
    record = recorded(tmp_path)
    _, cell = record["rows"][0]["cells"]
    assert (cell["status"], cell["message"]) == (
        "unavailable",
        "flash-sinkhorn runs on a GPU alone",
    )
    assert record["manifest"]["versions"]["flash-sinkhorn"] == "0.4.1"


def recorded(results: Path) -> dict[str, Any]:
    return json.loads(run_benchmark(results, *METHODS).read_text())
