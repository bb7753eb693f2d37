"""An evaluation that was stopped continues: what it had measured is in its record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asap_exp.core import manifest
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.files import read_json
from asap_exp.core.interruption import Interrupted, interruptible
from asap_exp.evaluate import evaluate as stage
from asap_exp.evaluate import measure
from tests.composed import composed
from tests.conftest import Pipeline
from tests.data.sentences import text_root
from tests.several import agreed, in_ranks
from tests.stages import EVALUATION, run_distill, run_evaluate, run_text
from tests.stopped import ATTEMPT, CLEAN, terminate, without

pytestmark = pytest.mark.slow
MEASURED = {
    *("layer_ms", "model_ms", "layer_speedup", "model_speedup", "peak_memory_mib"),
    *ATTEMPT,
}
"""Keys below which two records of the same evaluation may differ."""


@pytest.fixture(autouse=True)
def clean_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code be that of a commit, whatever is being edited."""
    monkeypatch.setattr(manifest, "code_version", lambda: dict(CLEAN))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, in order."""
    names: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(measure, name)

        def call(*given: Any) -> Any:
            names.append(name)
            return real(*given)

        return call

    for name in ("compare_predictions", "plan_measures", "speed_measures"):
        monkeypatch.setattr(measure, name, noted(name))
    return names


def full_memory(*_: Any, **__: Any) -> None:
    raise MemoryError("plans are too much")


def stop(results: Path, *words: str, at: str = "plan_measures", by: Any = terminate) -> None:
    """Evaluate until `at` is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, at, by)
        with pytest.raises((Interrupted, MemoryError)), interruptible():
            run_evaluate(results, *words)


NEW = "max_test_rows=40"
"""So that no evaluation of the pipeline has the same record."""


@pytest.mark.parametrize(
    ("by", "status"), [(terminate, "interrupted"), (full_memory, "failed")], ids=["signal", "error"]
)
def test_what_was_measured_is_kept(
    pipeline: Pipeline,
    measured: list[str],
    capsys: pytest.CaptureFixture[str],
    by: Any,
    status: str,
) -> None:
    whole = read_json(run_evaluate(pipeline.results, NEW))
    assert whole["manifests"]["evaluate"]["earlier_attempts"] == []
    measured.clear()
    stop(pipeline.results, NEW, by=by)
    stop(pipeline.results, NEW, at="speed_measures")
    file = run_evaluate(pipeline.results, NEW)
    assert measured == ["compare_predictions", "plan_measures", "speed_measures"]
    kept = "Parts of the evaluation: predictions, plans: measured before the run was stopped, kept"
    assert f"{kept}\n" in capsys.readouterr().out
    record = read_json(file)
    assert without(MEASURED, record) == without(MEASURED, whole)
    earlier = record["manifests"]["evaluate"]["earlier_attempts"]
    assert [each["status"] for each in earlier] == [status, "interrupted"]
    assert not (file.parent / "parts").exists()
    measured.clear()
    again = read_json(run_evaluate(pipeline.results, NEW))
    assert len(measured) == 3, "a finished evaluation is measured from the start"
    assert again["manifests"]["evaluate"]["earlier_attempts"] == []


def test_other_code_measures_again(
    pipeline: Pipeline,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop(pipeline.results, NEW)
    monkeypatch.setattr(manifest, "code_version", lambda: CLEAN | {"dirty": True})
    run_evaluate(pipeline.results, NEW)
    assert measured.count("compare_predictions") == 2
    why = "measured again, since the code has changes that no commit holds"
    assert f"Parts of the evaluation: predictions: {why}\n" in capsys.readouterr().out


def test_both_splits_of_a_masked_model_are_kept(tmp_path: Path, measured: list[str]) -> None:
    root = text_root(tmp_path / "data", "wikitext2")
    run_text(tmp_path / "results", root, "task=wikitext")
    small = ("calibration.samples=8", "calibration.holdout=4", "calibration.batch_size=4")
    run_distill(tmp_path / "results", *small)
    given = ("max_test_rows=9", "fidelity_samples=5", "batch_size=4")
    whole = read_json(run_evaluate(tmp_path / "results", *given))
    measured.clear()
    stop(tmp_path / "results", *given)
    record = read_json(run_evaluate(tmp_path / "results", *given))
    assert measured == [*["compare_predictions"] * 2, "plan_measures", "speed_measures"]
    assert without(MEASURED, record) == without(MEASURED, whole)


def test_behaviour_is_measured_last(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "measure_behaviour", full_memory)
        with pytest.raises(MemoryError):
            run_evaluate(pipeline.results, NEW, "behaviour=true", "fidelity_samples=4")
    with monkeypatch.context() as patch:
        for name in ("compare_predictions", "plan_measures", "speed_measures"):
            patch.setattr(measure, name, full_memory)
        record = read_json(
            run_evaluate(pipeline.results, NEW, "behaviour=true", "fidelity_samples=4")
        )
    assert record["behaviour"]["samples"] == 4


def test_ranks_share_what_is_kept(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank would wait for ever if it measured what rank 0 has kept."""
    given = (NEW, "devices=2", "accelerator=cpu")
    whole = read_json(agreed(lambda: run_evaluate(pipeline.results, *given)))
    with monkeypatch.context() as patch:
        patch.setattr(measure, "speed_measures", full_memory)
        first, _ = in_ranks(lambda: run_evaluate(pipeline.results, *given))
    assert first is not None
    assert "plans are too much" in first.error
    with monkeypatch.context() as patch:
        for name in ("compare_predictions", "plan_measures"):
            patch.setattr(measure, name, full_memory)
        record = read_json(agreed(lambda: run_evaluate(pipeline.results, *given)))
    assert without(MEASURED, record) == without(MEASURED, whole)


def test_check_counts_what_is_left(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    from asap_exp.evaluate.__main__ import run as check_or_run

    stop(pipeline.results, NEW, at="speed_measures")
    words = [*EVALUATION, f"paths.results={pipeline.results}", NEW, "check=true"]
    before = sorted(pipeline.results.rglob("*"))
    capsys.readouterr()
    check_or_run(composed("evaluate", words, EvaluateConfig))
    kept = "Parts of the evaluation: predictions, plans: measured before the run was stopped, kept"
    assert kept in capsys.readouterr().out
    assert sorted(pipeline.results.rglob("*")) == before
