"""Evaluation on several devices: two processes on a CPU share the samples, one of them times."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.core.composing import compose
from asap_exp.core.config import EvaluateConfig, TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.row import COLUMNS
from asap_exp.core.runs import Run
from asap_exp.evaluate import evaluate as stage
from asap_exp.evaluate import measure
from tests.conftest import Pipeline
from tests.data.sentences import text_root
from tests.several import Ended, agreed, in_ranks
from tests.stages import run_distill, run_evaluate, run_text

pytestmark = pytest.mark.slow
TWO = ("devices=2", "accelerator=cpu")
MEASURED = ("layer_ms", "model_ms", "layer_speedup", "model_speedup", "peak_memory_mib")
EXACT = ("accuracy", "agreement")


def in_two(results: Path, *overrides: str) -> Path:
    return agreed(lambda: run_evaluate(results, *overrides, *TWO))


def rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in record["rows"]}


def assert_equal_records(one: dict[str, Any], two: dict[str, Any]) -> None:
    """The same counts to the bit, the same means but for rounding, and all latencies."""
    assert list(rows(one)) == list(rows(two))
    for key, row in rows(one).items():
        other = rows(two)[key]
        assert row.keys() == other.keys()
        for name in (column.key for column in COLUMNS if column.key in row):
            if name in MEASURED:
                assert (other[name] is None) is (row[name] is None)
            elif name in EXACT or row[name] is None:
                assert other[name] == row[name], (key, name)
            else:
                assert other[name] == pytest.approx(row[name], rel=2e-6, abs=1e-7), (key, name)
    assert two["drift"] == pytest.approx(one["drift"], rel=1e-5)
    assert two["plans"] == one["plans"]
    assert two.get("right") == one.get("right")


def test_record_is_that_of_one_device(pipeline: Pipeline) -> None:
    """In batches of 16, the last one of a single sample, which one rank has."""
    given = ("max_test_rows=49", "fidelity_samples=17", "batch_size=16", "maps=all")
    run_distill(pipeline.results, "calibration.slices=2")
    alone = run_evaluate(pipeline.results, *given)
    one = read_json(alone)
    shutil.rmtree(alone.parent)
    two = in_two(pipeline.results, *given)
    assert two == alone, "the number of devices is no part of a record's name"
    assert_equal_records(one, read_json(two))
    assert one["right"]["samples"] == 49


def test_record_of_texts_is_that_of_one_device(tmp_path: Path) -> None:
    """Masked tokens, on the test and on the validation split; no samples that are right."""
    root = text_root(tmp_path / "data", "wikitext2")
    run_text(tmp_path / "results", root, "task=wikitext")
    small = ("calibration.samples=8", "calibration.holdout=4", "calibration.batch_size=4")
    run_distill(tmp_path / "results", *small)
    given = ("max_test_rows=9", "fidelity_samples=5", "batch_size=4")
    alone = run_evaluate(tmp_path / "results", *given)
    one = read_json(alone)
    assert "right" not in one
    shutil.rmtree(alone.parent)
    assert_equal_records(one, read_json(in_two(tmp_path / "results", *given)))


def test_ranks_that_found_different_maps_are_told(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stage.resolve

    def differently(config: EvaluateConfig, team: Any) -> Any:
        subject = found(config, team)
        if not team.leads:
            subject.variants.pop()
        return subject

    monkeypatch.setattr(stage, "resolve", differently)
    first, second = in_ranks(lambda: run_evaluate(pipeline.results, "max_test_rows=20", *TWO))
    assert first is not None
    assert second is not None
    assert "found different maps" in first.error
    assert second == Ended(None, "SystemExit: 2", ""), "rank 0 says it"


def test_first_rank_times_with_all_threads(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait meanwhile, so that the latency is that of one device."""
    compare = measure.compare_predictions
    before: list[int] = []

    def predict(*given: Any) -> Any:
        before.append(torch.get_num_threads())
        return compare(*given)

    def time(*_: Any) -> Any:
        raise RuntimeError(f"{torch.get_num_threads()} threads, {before[0]} before")

    monkeypatch.setattr(measure, "compare_predictions", predict)
    monkeypatch.setattr(measure, "speed_measures", time)
    saved = Run.config

    def without_threads(run: Run) -> TrainConfig:
        config = saved.__get__(run)
        return replace(config, trainer=replace(config.trainer, cpu_threads=None))

    monkeypatch.setattr(Run, "config", property(without_threads))

    # Real threads would hang in a forked process whose parent has used some.
    threads = [4]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])

    first, second = in_ranks(lambda: run_evaluate(pipeline.results, *TWO))
    assert first is not None
    assert second is not None
    assert first.error == "RuntimeError: 4 threads, 2 before"
    assert second.error.startswith("SystemExit: 1")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("devices=0", "at least 1"),
        ("trainer.devices=2", "use accelerator, devices and num_nodes"),
        ("num_nodes=0", "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(given: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        compose("evaluate", [given], EvaluateConfig)
