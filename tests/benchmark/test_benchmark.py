"""The stage writes one record, from which alone the tables and the figure are made."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.core.config import ReportConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.report.__main__ import run as run_report_stage
from asap_exp.report.benchmark_figure import time_figure
from asap_exp.report.benchmark_markdown import benchmark_csv, benchmark_markdown
from asap_exp.report.benchmark_records import load_records, notes
from asap_exp.report.benchmark_table import number
from tests.composed import composed
from tests.conftest import Pipeline
from tests.records import typed_benchmark
from tests.stages import run_benchmark
from tests.test_results import check_benchmarks_are_generated


@pytest.fixture(scope="module")
def shared_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("benchmark") / "results"
    run_benchmark(results)
    return results


@pytest.fixture
def record(shared_results: Path) -> dict[str, Any]:
    return only_record(shared_results)


@pytest.mark.slow
def test_record_says_what_was_measured_and_on_what(record: dict[str, Any]) -> None:
    manifest = record["manifest"]
    assert (manifest["status"], manifest["seed"]) == ("finished", 0)
    assert manifest["versions"]["torch"]
    assert "gpu" not in manifest["config"], "settings of other devices are not part of it"
    assert record["device"] == "CPU"
    assert (record["mode"], record["dtype"], record["cuda_graph"]) == ("forward", "float32", False)
    assert [(row["n"], row["batch"]) for row in record["rows"]] == [(4, 4), (8, 2)]
    assert all(0 < row["largest_logit"] < 20 for row in record["rows"])
    for row in record["rows"]:
        assert {cell["status"] for cell in row["cells"]} == {"timed"}
        assert all(cell["floor_ms"] > 0 for cell in row["cells"])


@pytest.mark.slow
def test_tables_and_figure_come_from_the_records(shared_results: Path) -> None:
    check_benchmarks_are_generated(shared_results / "report")


@pytest.mark.slow
def test_edited_table_is_found(tmp_path: Path, shared_results: Path) -> None:
    write_json(tmp_path / "records/benchmark/a.json", only_record(shared_results))
    (tmp_path / "benchmark.md").write_text(
        (shared_results / "report" / "benchmark.md").read_text() + " "
    )
    with pytest.raises(AssertionError):
        check_benchmarks_are_generated(tmp_path)


def only_record(results: Path) -> dict[str, Any]:
    (file,) = (results / "report" / "records" / "benchmark").glob("*.json")
    return read_json(file)


def report_stage(results: Path, *overrides: str) -> None:
    run_report_stage(composed("report", [f"paths.results={results}", *overrides], ReportConfig))


@pytest.mark.slow
def test_report_makes_them_anew_without_any_evaluation(
    shared_results: Path, tmp_path: Path
) -> None:
    report_stage(shared_results, f"out={tmp_path}")
    check_benchmarks_are_generated(tmp_path)
    assert (tmp_path / "benchmark.md").read_text() == (
        shared_results / "report" / "benchmark.md"
    ).read_text()


def test_report_of_one_task_has_no_benchmark(shared_results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation"):
        report_stage(shared_results, f"out={tmp_path}", "task=digits")
    assert not (tmp_path / "benchmark.md").exists()


def test_csv_has_every_cell_unrounded(record: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(benchmark_csv([typed_benchmark(record)]))))
    assert len(rows) == 2 * 5
    first = record["rows"][0]["cells"][0]
    for part in ("median", "q1", "q3"):
        assert float(rows[0][f"ms_{part}"]) == first["ms"][part]
    assert float(rows[0]["flops"]) == first["work"]["flops"]


def test_cell_without_a_time_has_its_word_and_its_reason(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        row["cells"][1] |= {"status": "error", "message": "MemoryError: full", "ms": None}
        row["cells"][1]["ratio"] = None
    text = benchmark_markdown([typed_benchmark(record)])
    assert "| 4 |" in text
    assert text.count("| error |") == 2
    (note,) = notes(typed_benchmark(record))
    assert note == "Sinkhorn T = 2, eager: error at n = 4, 8: MemoryError: full"
    assert note in text


@pytest.mark.slow
def test_each_length_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ("cpu.n=[4,8]", "cpu.tokens=16", "cpu.methods=[flash,sinkhorn_2]", "cpu.rounds=3")
    run_benchmark(tmp_path, "accelerator=cpu", *sizes)
    printed = capsys.readouterr().out
    for n in (4, 8):
        assert re.search(rf"n = {n}: compiled and checked 2 methods in \d+ s, \w+ in", printed)


def test_scaled_cell_is_marked_wherever_it_stands(record: dict[str, Any]) -> None:
    for other in record["rows"]:  # a method that was much slower than the others is not drawn
        other["cells"][1]["ms"] = other["cells"][0]["ms"]
    row = record["rows"][0]
    row["cells"][1] |= {
        "status": "scaled",
        "scaled_from": "1/4",
        "batch_measured": 1,
        "message": "measured on 1 of 4 samples",
        "memory_ratio": 7.0,
    }
    text = benchmark_markdown([typed_benchmark(record)])
    ms, memory = row["cells"][1]["ms"]["median"], row["cells"][1]["peak_memory_mib"]
    ratio = row["cells"][1]["ratio"]
    assert f"| {number(ms)} ({number(ratio)}x, scaled from 1/4 of the batch) |" in text
    assert f"| {memory:.1f} (7x, scaled from 1/4 of the batch) |" in text
    assert "* Sinkhorn T = 2, eager: scaled at n = 4: measured on 1 of 4 samples" in text
    flat = list(csv.DictReader(io.StringIO(benchmark_csv([typed_benchmark(record)]))))[1]
    assert (flat["status"], flat["scaled_from"], flat["batch_measured"]) == ("scaled", "1/4", "1")
    assert float(flat["ms_median"]) == ms
    assert hollow_points(record) == [([4], [ms])]


def hollow_points(record: dict[str, Any]) -> list[tuple[list[float], list[float]]]:
    (axes,) = time_figure(typed_benchmark(record)).axes
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if line.get_markerfacecolor() == "white"
    ]


def test_figure_of_one_length_lists_the_times(record: dict[str, Any]) -> None:
    del record["rows"][1:]
    (cells,) = (row["cells"] for row in record["rows"])
    cells[1] |= {"status": "error", "ms": None}
    (axes,) = time_figure(typed_benchmark(record)).axes
    timed = [cells[0], *cells[2:]]
    assert [label.get_text() for label in axes.get_yticklabels()] == [c["label"] for c in timed]
    assert [text.get_text() for text in axes.texts] == [number(c["ms"]["median"]) for c in timed]


@pytest.mark.slow
def test_factors_of_asap_over_the_teachers(tmp_path: Path) -> None:
    methods = "cpu.methods=[flash,sinkhorn_20,sinkhorn_eager_20,asap_2]"
    record = json.loads(run_benchmark(tmp_path, "cpu.n=[4]", methods).read_text())
    _, fused, eager, asap = record["rows"][0]["cells"]
    factors = {
        cell["method"]: cell["ms"]["median"] / asap["ms"]["median"] for cell in (fused, eager)
    }
    assert asap["faster_than"] == factors
    assert record["rows"][0]["cells"][0]["memory_ratio"] == 1.0
    words = [f"{number(factors[name])}x" for name in ("sinkhorn_20", "sinkhorn_eager_20")]
    text = benchmark_markdown([typed_benchmark(record)])
    assert f"| 4 | {words[0]} / {words[1]} / - |" in text


@pytest.mark.slow
def test_method_that_cannot_be_built_is_an_error_in_its_cell_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for a fit")

    monkeypatch.setattr("asap_exp.benchmark.operators.map_weights", refuse)
    record = json.loads(
        run_benchmark(tmp_path, "cpu.n=[4]", "cpu.methods=[flash,asap_2]").read_text()
    )
    flash, asap = record["rows"][0]["cells"]
    assert (flash["status"], asap["status"]) == ("timed", "error")
    assert asap["message"] == "MemoryError: no room for a fit"


@pytest.mark.slow
def test_benchmark_of_other_settings_is_another_record(tmp_path: Path) -> None:
    small = ("cpu.n=[4]", "cpu.methods=[flash]")
    paths = [run_benchmark(tmp_path, *small, *more) for more in ((), ("seed=1",), ())]
    assert paths[0] == paths[2] != paths[1]
    assert len(load_records(paths[0].parent)) == 2
    check_benchmarks_are_generated(tmp_path)


@pytest.mark.slow
def test_inputs_recorded_in_a_teacher(pipeline: Pipeline) -> None:
    """The teacher has 4 tokens, resized images give 16; 8 patches form no square."""
    path = run_benchmark(pipeline.results, "inputs=recorded", "mode=train", "cpu.n=[4,8,16]")
    record = json.loads(path.read_text())
    assert [row["n"] for row in record["rows"]] == [4, 16]
    (left_out,) = record["left_out"]
    assert left_out.startswith(
        "n = 8 is left out: the teacher's inputs have 4 tokens, or any square"
    )
    assert record["inputs"]["resized"] == {"tokens": 4, "to": [16]}
    assert "; n = 16 of resized images" in benchmark_markdown([typed_benchmark(record)])
    assert record["inputs"]["teacher"] == pipeline.teacher.name
    assert record["inputs"]["layer"] == "blocks.1.attn"
    assert {cell["status"] for cell in record["rows"][0]["cells"]} == {"timed"}
    assert record["left_out"][0] in benchmark_markdown([typed_benchmark(record)])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("inputs=recorded",), "no finished Sinkhorn teacher"),
        (("cuda_graph=true",), "cuda_graph=true needs a GPU"),
        (("cpu.methods=[flash,asap]",), "the method asap is not known"),
    ],
)
def test_mistake_is_refused_before_anything_is_written(
    tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run_benchmark(tmp_path / "results", *overrides)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cpu.n=[8]", r"^cpu\.n=\[8\] .* choose cpu\.n=\[4\]$"),
        ("cpu.head_dim=16", "cpu.head_dim=8"),
    ],
)
def test_shape_that_the_teacher_does_not_have_is_refused(
    pipeline: Pipeline, override: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run_benchmark(pipeline.results, "inputs=recorded", override)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("graph", ["false", "true"])
def test_gpu_has_a_column_for_each_method(tmp_path: Path, mode: str, graph: str) -> None:
    sizes = ("gpu.n=[64,128]", "gpu.tokens=1536", "gpu.rounds=3")
    overrides = (f"mode={mode}", f"cuda_graph={graph}", "accelerator=gpu", *sizes)
    record = json.loads(run_benchmark(tmp_path, *overrides).read_text())
    assert record["device"] == torch.cuda.get_device_name()
    assert record["ceilings"]["exponentials_per_second"] > 0
    for row in record["rows"]:
        for cell in row["cells"]:
            forward = ("closure_flex", "attention_pass", "flash_sinkhorn_20")
            alone = mode == "train" and cell["method"] in forward
            assert cell["status"] == ("unavailable" if alone else "timed"), cell["message"]
        assert row["cells"][0]["operator"] in ("flash", "cudnn", "efficient")
