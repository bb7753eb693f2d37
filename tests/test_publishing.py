"""Published results and one's own: no stage touches what is published, and publishing refuses."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from asap_exp.core.config import PathsConfig, ReportConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.steps import StepRecord
from asap_exp.core.typed import from_json
from asap_exp.report.__main__ import run as run_report_stage
from asap_exp.report.benchmarks import report_benchmarks
from asap_exp.report.published import MARK, own_folder
from tests.composed import composed
from tests.conftest import Pipeline, Report
from tests.records import (
    published,
    typed,
    typed_benchmark,
    unsealed,
    with_test_rows,
    write_sealed_record,
)
from tests.stages import CALIBRATION, EVALUATION, TINY, run_benchmark, run_report
from tests.test_scripts import script

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "train": [*TINY, "recipe.epochs=2"],
    "distill": CALIBRATION,
    "evaluate": EVALUATION,
    "report": [],
}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the published results of this one; the working directory."""
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=own)
    for name in (".gitignore", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    git("add", "--all")
    git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message", "x")
    return tmp_path


def own(folder: str, names: list[str]) -> set[str]:
    """The names that are not published, for `copytree`."""
    own_names = {"runs", "report", "demo", "index.html"}
    return own_names & {*names} if Path(folder).name == "results" else set()


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    return done.stdout


def small(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script whose stages are tiny."""

    def compose(stage: str, overrides: list[str], schema: type) -> Any:
        return composed(stage, [*overrides, *SMALL[stage]], schema)

    monkeypatch.setattr(module, "compose", compose)
    return module


@pytest.mark.slow
def test_stages_demo_and_reproduce_leave_the_published_results_alone(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "digits_qknorm", "--seeds", "0", "--train", "sinkhorn"])
    small(script("reproduce"), monkeypatch).main()
    monkeypatch.setattr(sys, "argv", ["x"])
    small(script("demo"), monkeypatch).main()
    run_benchmark(Path("results"))
    run_report_stage(composed("report", [], ReportConfig))
    assert git("status", "--porcelain") == ""
    report = clone / "results" / "report"
    for name in ("tables.md", "tables.csv", "benchmark.md", "benchmark.csv", "index.html"):
        assert (report / name).is_file()
    assert len(list((report / "records").glob("*.json"))) == 2
    assert len(list((report / "records" / "benchmark").glob("*.json"))) == 1


@pytest.mark.slow
def test_a_row_with_and_without_fits_takes_rivals_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, compiled and evaluated in truth, then again with two rivals alone in between."""
    module = script("reproduce")
    coarse = ["calibration=coarse", "calibration.coarse.tokens=2", "calibration.batch_size=16"]
    row = replace(
        module.load_row("digits_qknorm"),
        seeds=[0],
        baselines=["softmax", "lotformer", "coarse attention.tokens=2"],
        train=[*TINY, "recipe.epochs=2"],
        distill=[[*coarse, "calibration.form=two_sided,one_pass"], [*CALIBRATION]],
        evaluate=[["maps=all", "behaviour=true", *EVALUATION]],
    )
    monkeypatch.setattr(module, "load_row", lambda name: row)

    def reproduced(*train: str) -> dict[str, Any]:
        words = ["digits_qknorm", "--results", str(tmp_path), "--train", *train]
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
        module.main()
        (found,) = tmp_path.glob("runs/digits/vit-sinkhorn/*/evaluate/*/metrics.json")
        return read_json(found)

    def trained(record: dict[str, Any]) -> list[str]:
        keys = (row["key"] for row in record["rows"])
        return [key.partition("_")[0] for key in keys if key.endswith("_trained")]

    record = reproduced("softmax", "sinkhorn")
    assert trained(record) == ["softmax"]
    kinds = {row["key"]: row["group"] for row in record["rows"]}
    assert (kinds["asap"], kinds["map_0"], kinds["map_1"]) == ("asap", "coarse", "coarse")
    teacher = record["manifests"]["train"]
    assert trained(reproduced("lotformer", "coarse attention.tokens=2")) == ["softmax"]
    record = reproduced("sinkhorn")
    assert trained(record) == ["softmax", "coarse", "lotformer"]
    assert record["manifests"]["train"] == teacher
    assert {each["key"] for each in record["behaviour"]["rows"]} >= {"asap", "map_0", "map_1"}
    with pytest.raises(UserError, match=r"no row of conf/reproduce makes it"):
        PUBLISH.target(next(tmp_path.rglob("metrics.json")), force=False)


@pytest.mark.parametrize("place", ["", "records", "figures", "records/benchmark"])
def test_published_results_are_no_folder_to_report_to(
    pipeline: Pipeline, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "clone"
    (folder / place).mkdir(parents=True)
    (folder / MARK).write_text("x")
    with pytest.raises(UserError, match=rf"holds published results \(see .*{MARK}"):
        run_report(pipeline.results, f"out={folder / place}")
    with pytest.raises(UserError, match="no stage changes"):
        report_benchmarks(PathsConfig(results=str(tmp_path)), folder / place)
    assert [file.name for file in folder.rglob("*.*")] == [MARK]
    assert own_folder(folder / "report") == folder / "report"


def test_results_are_marked_as_published() -> None:
    assert (ROOT / "results" / MARK).is_file()


@pytest.mark.slow
def test_published_rows_are_shown_beside_ones_own_if_asked(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    other = tmp_path / "clone"
    write_sealed_record(other / "records" / "a.json", read_json(pipeline.record))
    write_sealed_record(other / "records" / "b.json", published("wikitext"))
    out = tmp_path / "out"
    run_report(pipeline.results, f"out={out}")
    alone = (out / "tables.md").read_text()
    assert "published" not in alone.partition("-->")[2]
    run_report(pipeline.results, f"out={out}", f"published={other}", "task=digits", "figures=svg")
    text = (out / "tables.md").read_text()
    title = "digits (subset), n = 4, with qk_norm"
    assert text.index(f"## {title}\n") < text.index(f"## {title}, published\n")
    assert "wikitext" not in text
    page = (out / "index.html").read_text()
    assert f">{title}</a>" in page
    assert f">{title}, published</a>" in page
    assert len(list((out / "figures").glob("*.svg"))) == 2 * 4 + 1, "and a training's"
    assert len(list((out / "records").glob("*.json"))) == 1, "others stay where they are"
    with pytest.raises(UserError, match="has no folder records"):
        run_report(pipeline.results, f"out={out}", f"published={out / 'figures'}")


PUBLISH = script("publish")


def reasons(value: dict[str, Any]) -> list[str]:
    return [*PUBLISH.of_evaluation(typed(value), value)]


def changed(name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    value = published(name)
    change(value)
    return value


@pytest.mark.slow
def test_every_published_record_could_be_published() -> None:
    for file in sorted((ROOT / "results" / "records").rglob("*.json")):
        place, found = PUBLISH.examined(file, read_json(file))
        assert (place, found) == (file, []), file.name
    file = ROOT / "results" / "gpu_tests.json"
    assert PUBLISH.examined(file, read_json(file)) == (file, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda r: r["manifests"]["train"]["code"].update(dirty=True),
            "train: commit .* had uncommitted changes",
        ),
        (lambda r: r["manifests"]["evaluate"]["code"].update(commit=None), "has no commit"),
        (lambda r: r["latency"].update(rounds=3), "3 timed rounds, 20 in its row"),
        (
            lambda r: r["manifests"]["evaluate"]["hardware"].update(gpu="NVIDIA H200"),
            "timed without CUDA graphs",
        ),
        (lambda r: r.update(fidelity_samples=8), "8 samples with compared plans, 256 in its row"),
        (lambda r: r["latency"].update(batch_size=4), "4 samples per timed batch, 64 in its row"),
        (lambda r: r.update(run="digits/vit-sinkhorn/00000000-s0"), "no row of conf/reproduce"),
        (
            lambda r: r["manifests"]["train"]["config"]["trainer"].update(limit_train_batches=2),
            "trained on a part: 2 batches per epoch only",
        ),
        (
            lambda r: r["manifests"]["train"]["config"]["trainer"].update(limit_train_batches=0.5),
            "trained on a part: 50% of the batches per epoch only",
        ),
        (
            lambda r: r["manifests"]["train"]["config"]["trainer"].update(fast_dev_run=True),
            "trained on a part: trainer.fast_dev_run=True",
        ),
    ],
)
def test_a_record_is_refused_with_the_reason(change: Callable[[Any], Any], words: str) -> None:
    value = changed("digits-vit-sinkhorn-18c43027-s0", change)
    assert any(re.search(words, reason) for reason in reasons(value))


@pytest.mark.slow
def test_a_subset_of_the_test_split_is_refused_and_a_subset_of_a_row_is_not() -> None:
    digits = with_test_rows(published("digits-vit-sinkhorn-18c43027-s0"), 300, 540)
    digits["manifests"]["evaluate"]["config"]["max_test_rows"] = 300
    assert reasons(digits) == ["measured on 300 test images, by max_test_rows=300"]
    dbpedia = typed(published("dbpedia"))
    assert not dbpedia.test.whole
    assert reasons(published("dbpedia")) == []


def test_a_toy_is_refused_unless_forced(
    shared_pipeline: Pipeline, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match="no row of conf/reproduce makes it") as refused:
        PUBLISH.target(shared_pipeline.record, force=False)
    for words in (
        "measured on 48 of 540 test images",
        "trained on a part: 4 batches per epoch only",
    ):
        assert words in str(refused.value)
    place = PUBLISH.target(shared_pipeline.record, force=True)
    run = shared_pipeline.teacher.name.replace("/", "-")
    assert place.parent == ROOT / "results" / "records"
    assert place.name == f"{run}-{shared_pipeline.record.parent.name}.json"
    assert not place.exists()
    assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["manifest"]["code"].update(dirty=True), "had uncommitted changes"),
        (lambda r: r.update(triton_interpreted=True), "interpreted"),
        (lambda r: r["manifest"]["hardware"].update(gpu=None), "measured on a CPU"),
    ],
)
def test_a_benchmark_is_refused_with_the_reason(change: Callable[[Any], Any], words: str) -> None:
    value = changed("benchmark/nvidia-h200-forward-random-graph-3f9", change)
    (reason,) = PUBLISH.of_benchmark(typed_benchmark(value))
    assert words in reason


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        ([], []),
        (["experiment=cifar_256"], []),
        (["+experiment=imdb", "model.dim=32"], ["model.dim=32"]),
        (["experiment=mine"], ["experiment=mine"]),
    ],
)
def test_steps_are_those_of_a_task_or_experiment_as_it_is(
    overrides: list[str], refused: list[str]
) -> None:
    value = published("steps/nvidia-h200-step-cifar")
    value["manifest"]["config"]["step"]["overrides"] = overrides
    found = [*PUBLISH.of_steps(from_json(StepRecord, unsealed(value), Path("steps.json")))]
    assert found == [f"the task was trained with other settings: step.overrides={refused}"] * bool(
        refused
    )


def test_place_of_results_is_not_published() -> None:
    value = published("steps/nvidia-h200-step-cifar")
    assert PUBLISH.without_place(value) == value
    manifest = value["manifest"]
    elsewhere = manifest | {"command": manifest["command"] + " paths.results='/home/me/my results'"}
    found = PUBLISH.without_place(value | {"manifest": elsewhere})
    assert found == value
    from_json(StepRecord, unsealed(found), Path("steps.json"))


def test_an_older_evaluation_of_a_run_is_named_as_superseded(tmp_path: Path) -> None:
    mine = published("imdb")
    other = published("wikitext")
    newer = changed("imdb", lambda r: r["manifests"]["evaluate"].update(ended="2099-01-01"))
    for name, value in (("a", newer), ("b", mine), ("c", other)):
        write_sealed_record(tmp_path / f"{name}.json", value)
    assert [file.name for file in PUBLISH.superseded(tmp_path)] == ["b.json"]
    assert PUBLISH.superseded(ROOT / "results" / "records") == []


def test_failed_gpu_tests_and_other_files_are_refused(tmp_path: Path) -> None:
    value = read_json(ROOT / "results" / "gpu_tests.json")
    value["outcomes"]["failed"] = 2
    value["hardware"]["gpu"] = None
    value["is_whole"] = False
    reasons = ["there was no GPU", "the tests were stopped before their end", "2 tests failed"]
    assert [*PUBLISH.of_gpu_tests(value)] == reasons
    contents: list[Any] = [[], {"format": 1}]
    for content in contents:
        file = tmp_path / "x.json"
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"x\.json is no record"):
            PUBLISH.target(file, force=True)


@pytest.mark.parametrize(
    ("end", "stop", "is_whole"),
    [
        ("OK", False, True),
        ("TESTS_FAILED", False, True),
        ("TESTS_FAILED", "stopping after 1 failures", False),
        ("INTERRUPTED", False, False),
    ],
)
def test_report_of_tests_says_whether_they_came_to_their_end(
    tmp_path: Path, end: str, stop: bool | str, is_whole: bool
) -> None:
    session: Any = SimpleNamespace(shouldfail=stop, shouldstop=False)
    Report(tmp_path / "report.json").pytest_sessionfinish(session, pytest.ExitCode[end])
    assert read_json(tmp_path / "report.json")["is_whole"] is is_whole


def test_published_figures_are_those_of_the_groups_and_those_that_documents_show() -> None:
    shown = PUBLISH.shown_figures()
    assert {"summary.png", "digits-plain-156709a8-plans.png"} <= shown
    there = {file.name for file in (ROOT / "results" / "figures").glob("*.png")}
    assert shown <= there
