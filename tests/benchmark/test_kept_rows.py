"""A benchmark that was stopped continues: rows that it had measured are in its record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asap_exp.benchmark import benchmark, steps
from asap_exp.core import manifest
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.interruption import Interrupted, interruptible
from asap_exp.core.kept_parts import Parts
from asap_exp.core.locks import held
from asap_exp.report.benchmark_markdown import benchmark_markdown
from asap_exp.report.benchmark_records import read_record
from asap_exp.report.step_records import load_records as load_steps
from asap_exp.report.step_table import steps_markdown
from tests.benchmark.test_steps import config as step_config
from tests.composed import composed
from tests.stages import BENCHMARK, run_benchmark
from tests.stopped import ATTEMPT, CLEAN, terminate, without

SMALL = ("cpu.methods=[flash,sinkhorn_2]",)

MEASURED = {
    *("ms", "ratio", "memory_ratio", "faster_than", "first_call_seconds", "peak_memory_mib"),
    *("floor_ms", "exponentials_ms", "ceilings", "measured"),
    *ATTEMPT,
}
"""Keys below which two records of the same benchmark may differ."""


@pytest.fixture(autouse=True)
def clean_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code be that of a commit, whatever is being edited."""
    monkeypatch.setattr(manifest, "code_version", lambda: dict(CLEAN))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths in the order in which they are measured."""
    lengths: list[int] = []
    real = benchmark.measure

    def measure(methods: Any, inputs: Any, **options: Any) -> Any:
        lengths.append(inputs.q.shape[2])
        return real(methods, inputs, **options)

    monkeypatch.setattr(benchmark, "measure", measure)
    return lengths


def run(results: Path, *words: str) -> Path:
    return run_benchmark(results, *SMALL, *words)


def full_memory() -> None:
    raise MemoryError("n = 8 is too much")


def stop(results: Path, *words: str, at: int = 8, by: Callable[[], None] = terminate) -> Path:
    """Run the benchmark until a length is to be measured, and return its folder."""
    real = benchmark.row

    def row(config: Any, suite: Any, shape: Any, *rest: Any) -> dict[str, Any]:
        if shape.n == at:
            by()
        return real(config, suite, shape, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "row", row)
        with pytest.raises((Interrupted, MemoryError)), interruptible():
            run(results, *words)
    return newest(results)


def newest(results: Path) -> Path:
    files = (results / "runs" / "benchmark").glob("*/manifest.json")
    return max(files, key=lambda file: file.stat().st_mtime_ns).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "status"), [(terminate, "interrupted"), (full_memory, "failed")], ids=["signal", "error"]
)
def test_length_that_was_measured_is_kept(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str], by: Any, status: str
) -> None:
    folder = stop(tmp_path / "stopped", by=by)
    kept = read_json(folder / "parts" / "4.json")
    assert not (folder / "metrics.json").exists()
    path = run(tmp_path / "stopped")
    assert measured == [4, 8]
    assert "n = 4: measured before the run was stopped, kept\n" in capsys.readouterr().out
    record = read_json(path)
    assert record["rows"][0] == kept["content"]
    assert record["ceilings"] == kept["shared"]
    (earlier,) = record["manifest"]["earlier_attempts"]
    assert earlier["status"] == status
    times = [row["measured"] for row in record["rows"]]
    assert earlier["started"] < times[0] < earlier["ended"] <= record["manifest"]["started"]
    assert record["manifest"]["started"] < times[1]
    note = "n = 4: measured before the benchmark was stopped and continued"
    assert f"* {note}" in benchmark_markdown([read_record(path)])

    whole = read_json(run(tmp_path / "whole"))
    assert without(MEASURED, record) == without(MEASURED, whole)
    assert whole["manifest"]["earlier_attempts"] == []


@pytest.mark.slow
def test_finished_benchmark_is_measured_from_the_start(
    tmp_path: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    stop(tmp_path)
    run(tmp_path)
    assert not (newest(tmp_path) / "parts").exists()
    measured.clear()
    capsys.readouterr()
    record = read_json(run(tmp_path))
    assert measured == [4, 8]
    assert "kept" not in capsys.readouterr().out
    assert record["manifest"]["earlier_attempts"] == []


@pytest.mark.slow
def test_rows_of_several_attempts_name_them_all(tmp_path: Path, measured: list[int]) -> None:
    """The last of them was killed: its manifest still says that it runs."""
    lengths = "cpu.n=[2,4,8]"
    stop(tmp_path, lengths, at=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "write_over", lambda *_: None)
        folder = stop(tmp_path, lengths)
    assert read_json(folder / "manifest.json")["status"] == "running"
    record = read_json(run(tmp_path, lengths))
    assert measured == [2, 4, 8]
    earlier = record["manifest"]["earlier_attempts"]
    assert [each["status"] for each in earlier] == ["interrupted", "running"]
    starts = [each["started"] for each in (*earlier, record["manifest"])]
    times = [row["measured"] for row in record["rows"]]
    assert sorted([*starts, *times]) == [
        time for pair in zip(starts, times, strict=True) for time in pair
    ]


OTHER = {"commit": "b" * 40, "dirty": False}


@pytest.mark.parametrize(
    ("then", "here", "why"),
    [
        ({}, {"code": OTHER}, f"code.commit was {'a' * 40} and is {'b' * 40}"),
        ({}, {"code": CLEAN | {"dirty": True}}, "the code has changes that no commit holds"),
        ({"code": CLEAN | {"dirty": True}}, {}, "the code had changes that no commit holds"),
        ({"code": {"commit": None, "dirty": None}}, {}, "the commit of the code is not known"),
        ({}, {"versions": {"torch": "2"}}, "versions.torch was 1 and is 2"),
        ({}, {"hardware": {"gpu": "B"}}, "hardware.gpu was A and is B"),
        ({}, {"settings": {"a": 2}}, "settings.a was 1 and is 2"),
    ],
    ids=str,
)
def test_row_measured_with_something_else_is_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], then: Any, here: Any, why: str
) -> None:
    rows_with(tmp_path, then).add("4", {"n": 4}, {"tflops": 1.5})
    assert rows_with(tmp_path, {}).missing == ([] if not then else ["4"])
    capsys.readouterr()
    record: dict[str, Any] = {}
    rows = rows_with(tmp_path, here, record)
    assert rows.missing == ["4"]
    assert rows.shared is None
    assert record["earlier_attempts"] == []
    assert capsys.readouterr().out == f"n = 4: measured again, since {why}\n"


def rows_with(folder: Path, changed: dict[str, Any], record: dict[str, Any] | None = None) -> Parts:
    """Rows of an attempt that begins now; `record` becomes its manifest."""
    facts = {"code": CLEAN, "versions": {"torch": "1"}, "settings": {"a": 1}, **changed}
    hardware = {"gpu": "A", "cpu": "C", "cpu_threads": 1, "system": "S"}
    facts["hardware"] = hardware | facts.get("hardware", {})
    record = {} if record is None else record
    record |= {"status": "running", "started": manifest.now(), "earlier_attempts": [], **facts}
    return Parts(folder, record, {"4": facts["settings"]}, "n = {}")


def test_kept_rows_share_what_the_first_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = manifest.begun(earlier_attempts=[])
    rows = Parts(tmp_path, record, {"4": {}, "8": {}}, "n = {}")
    rows.add("4", {"n": 4}, {"tflops": 1.5})
    rows.add("8", {"n": 8}, {"tflops": 2.5})
    rows = Parts(tmp_path, manifest.begun(earlier_attempts=[]), {"4": {}, "8": {}}, "n = {}")
    assert (rows.shared, rows.missing) == ({"tflops": 1.5}, ["8"])
    assert "n = 8: measured again, since shared.tflops was" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_text(file.read_text()[:100]), "is damaged: it is not JSON"),
        (
            lambda file: write_json(file, read_json(file) | {"content": {"n": 5}}),
            "was changed after it was written",
        ),
        (lambda file: write_json(file, {"format": 1}), "is damaged, or of another version"),
    ],
    ids=["cut", "edited", "other"],
)
def test_damaged_row_is_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], words: str
) -> None:
    rows_with(tmp_path, {}).add("4", {"n": 4})
    damage(tmp_path / "parts" / "4.json")
    assert rows_with(tmp_path, {}).missing == ["4"]
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path / 'parts' / '4.json'} {words}")
    assert err.endswith("; n = 4 is measured again\n")


@pytest.mark.slow
def test_other_settings_share_no_row(tmp_path: Path, measured: list[int]) -> None:
    stop(tmp_path)
    run(tmp_path, "seed=1")
    assert measured == [4, 4, 8]
    run(tmp_path)
    assert measured == [4, 4, 8, 8]


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    words = [*BENCHMARK, *SMALL, f"paths.results={tmp_path}"]
    config = composed("benchmark", words, benchmark.BenchmarkConfig)
    device, config = benchmark.on_device(config)
    suite, _ = benchmark.suite_of(config, device)
    source = benchmark.input_source(config, suite, device)
    public = benchmark.benchmark_config(config, device)
    name = benchmark.benchmark_name(config, device, public, source)
    with held(benchmark.folder_of(config.paths, name)), pytest.raises(UserError, match="in use by"):
        benchmark.benchmark(config)


@pytest.mark.slow
def test_check_counts_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from asap_exp.benchmark.__main__ import run as stage

    stop(tmp_path)
    words = [*BENCHMARK, *SMALL, f"paths.results={tmp_path}", "check=true"]
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    stage(composed("benchmark", words, benchmark.BenchmarkConfig))
    out = capsys.readouterr().out
    assert "n = 4: measured before the run was stopped, kept" in out
    assert "2 methods, forward, at n = [8]; about" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_attention_that_was_measured_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    real = steps.step_row

    def step_row(training: Any, *rest: Any) -> dict[str, Any]:
        trained.append(training.attention["name"])
        if trained == ["softmax", "sinkhorn"]:
            full_memory()
        return real(training, *rest)

    monkeypatch.setattr(steps, "step_row", step_row)
    with pytest.raises(MemoryError):
        steps.benchmark_steps(step_config(tmp_path))
    file = steps.benchmark_steps(step_config(tmp_path))
    assert trained == ["softmax", "sinkhorn", "sinkhorn"]
    assert "softmax: measured before the run was stopped, kept\n" in capsys.readouterr().out
    (record,) = load_steps(file.parent)
    assert [row.attention for row in record.rows] == ["softmax", "sinkhorn"]
    assert [each.status for each in record.manifest.earlier_attempts] == ["failed"]
    assert "softmax measured before the benchmark was stopped" in steps_markdown([record])
    assert not list(tmp_path.glob("runs/steps/*/parts"))
