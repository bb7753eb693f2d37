"""`benchmark mode=step`: a training of a task, timed as it is."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd.profiler import DeviceType

from asap_exp.benchmark.steps import benchmark_steps, computed, flops_of, train_config
from asap_exp.core.config import BenchmarkConfig
from asap_exp.core.errors import UserError
from asap_exp.data.tokens import TokenBatch
from asap_exp.engine.step_timer import Pace, kernel_times
from asap_exp.report.step_records import load_records
from tests.composed import composed

STEP = ("mode=step", "task=digits", "accelerator=cpu", "step.warm_up=1", "step.steps=3")
SMALL = "step.overrides=['model.dim=16','model.heads=2','model.depth=2','recipe.batch_size=16']"


def config(results: Path, *words: str) -> BenchmarkConfig:
    return composed(
        "benchmark", [*STEP, SMALL, f"paths.results={results}", *words], BenchmarkConfig
    )


@pytest.mark.slow
def test_record_and_table_of_a_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = benchmark_steps(config(tmp_path))
    (record,) = load_records(file.parent)
    assert [row.attention for row in record.rows] == ["softmax", "sinkhorn"]
    for row in record.rows:
        assert row.steps == 3
        assert 0 < row.median_ms <= row.step_ms * row.steps
        assert row.samples_per_second == pytest.approx(16_000 / row.step_ms)
        assert row.tokens_per_second == pytest.approx(16 * row.samples_per_second)
        assert row.gpu_busy is row.peak_memory_mib is None
    softmax, sinkhorn = record.rows
    assert softmax.model_tflops == sinkhorn.model_tflops
    printed = capsys.readouterr().out
    assert "digits: training steps on CPU" in printed
    assert "GPU busy" not in printed
    written = (file.parents[2] / "steps.md").read_text()
    assert "| sinkhorn |" in written
    assert "model.depth=2; recipe.batch_size=16; batches of at most 16 images" in written
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_training_that_is_too_short_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ended after \d+ steps.*lower it.*recipe\.epochs"):
        benchmark_steps(
            config(
                tmp_path,
                SMALL[:-1] + ",'recipe.epochs=1','recipe.warmup_epochs=0']",
                "step.steps=500",
                "step.attentions=[softmax]",
            )
        )
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=null"], "give task=NAME"),
        (["inputs=recorded"], "reads no teacher"),
        (["step.attentions=[]"], "step.attentions"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config(tmp_path, *words)


def test_products_of_a_step_are_those_of_its_weights() -> None:
    """A layer of w weights takes 6 w operations per row: 2 forward, 4 backward."""
    net = nn.Sequential(nn.Linear(12, 8, device="meta"), nn.Linear(8, 4, device="meta"))
    example = (torch.zeros(1, 12), torch.zeros(1))
    # The gradient of the inputs themselves is not computed.
    assert flops_of(net, example, (5, 12)) == 5 * (4 * 12 * 8 + 6 * 8 * 4)


def test_busy_time_counts_overlapping_kernels_once() -> None:
    def event(start: int, end: int, device: DeviceType = DeviceType.CUDA) -> SimpleNamespace:
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(time_range=span, device_type=device)

    events = [event(60, 100), event(0, 30), event(20, 40), event(0, 900, DeviceType.CPU)]
    found = kernel_times(SimpleNamespace(events=lambda: events))
    assert found == pytest.approx((80e-6, 100e-6, 3))
    pace = Pace(device_seconds=found[0], profiled_seconds=found[1])
    assert pace.busy == pytest.approx(0.8)


@pytest.mark.slow
def test_tokens_of_texts_count_their_padding(tmp_path: Path) -> None:
    pace = Pace(steps=2, seconds=0.5)
    pace.shapes.update({(4, 32): 1, (2, 48): 1})
    words = composed(
        "benchmark",
        [
            "mode=step",
            "task=agnews_mlm",
            f"paths.results={tmp_path}",
            "step.overrides=['model.dim=16','model.heads=2','model.depth=1']",
        ],
        BenchmarkConfig,
    )

    class Data:
        def train_dataloader(self) -> "Data":
            return self

        def longest(self) -> tuple:
            ids = torch.zeros(1, 40, dtype=torch.int64)
            return (TokenBatch(ids, None, torch.arange(6)), torch.zeros(6)), 1

    found = computed(pace, train_config(words, "softmax"), Data(), rate=1.0)
    assert found["tokens_per_second"] == (4 * 32 + 2 * 48) / 0.5
    assert 0 < found["model_tflops"] < 1
