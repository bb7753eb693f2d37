"""All stages on own images and texts, without repeating where they are."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.runs import Run
from asap_exp.data.run_files import CLASSES
from asap_exp.train.__main__ import run
from tests.data.own.made import CLASSES as NAMES
from tests.data.own.made import request, sentences, write_csv, write_folder, write_images
from tests.stages import SINKHORN, run_benchmark, run_distill, run_evaluate, run_report

pytestmark = pytest.mark.slow

TINY_OWN = (
    "logger=csv",
    "callbacks.progress_bar=false",
    "model.dim=16",
    "model.heads=2",
    "model.depth=2",
    "recipe.epochs=2",
    "recipe.warmup_epochs=0",
    "callbacks.diagnostic_samples=8",
    "callbacks.checkpoint_seconds=0",
    *SINKHORN,
)
TEXTS = ("data.vocab_size=400", "data.max_length=32")
FEW = ("max_test_rows=null", "fidelity_samples=8")


@dataclass
class Made:
    """Results of a run on own data."""

    results: Path
    data: Path
    run: Run


def run_own(results: Path, task: str, path: Path, *overrides: str) -> Run:
    """Train as the command line does."""
    where = (f"paths.results={results}", f"data.cache={results.parent / 'cache'}")
    score = run(request(task, path, *TINY_OWN, *where, *overrides))
    assert score is not None
    manifests = results.glob("runs/*/*/*/manifest.json")
    return Run(max(manifests, key=lambda file: file.stat().st_mtime).parent)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Made:
    root = tmp_path_factory.mktemp("own")
    folder = write_folder(root / "here" / "pets", 40, size=(8, 8))
    trained = run_own(root / "results", "images", folder, "data.limit=90")
    run_distill(root / "results", "task=images")
    run_evaluate(root / "results", "task=images", *FEW)
    return Made(root / "results", folder, trained)


@pytest.fixture
def made(shared, tmp_path) -> Made:
    """A copy that a test may change."""
    shutil.copytree(shared.results, tmp_path / "results")
    shutil.copytree(shared.data, tmp_path / "here" / "pets")
    run = Run(tmp_path / "results" / shared.run.path.relative_to(shared.results))
    return Made(tmp_path / "results", tmp_path / "here" / "pets", run)


def metrics(results: Path) -> dict:
    (file,) = results.glob("runs/*/*/*/evaluate/*/metrics.json")
    return read_json(file)


def test_record_names_the_data_and_calls_it_a_subset(shared):
    record = metrics(shared.results)
    assert (record["task"], record["data"]) == ("images", "pets")
    assert record["test"] == {"rows": 24, "of": 24}
    data = shared.run.manifest.data
    assert (data["train_split_rows"], data["train_split_rows_in_all"]) == (90, 96)
    assert data["source"] == "own image folder"
    assert read_json(shared.run.path / CLASSES) == list(NAMES)
    assert str(shared.data.parent) not in str(shared.run.manifest.config)


def test_tables_call_the_data_a_subset(made, tmp_path, capsys):
    run_report(made.results, f"out={tmp_path / 'out'}")
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "pets (subset), n = 16" in tables
    assert "a SUBSET of the split's 96" in tables


def test_the_same_command_finds_the_finished_run(made, capsys):
    again = run_own(made.results, "images", made.data, "data.limit=90")
    assert again.path == made.run.path
    assert "Already finished" in capsys.readouterr().out


def held_out(folder: Path) -> tuple[int, int]:
    """Return how many samples a map was to be checked on, and was fitted on."""
    manifest = read_json(folder / "manifest.json")
    return manifest["config"]["calibration"]["holdout"], manifest["data"]["rows"]


def test_map_of_little_data_is_checked_on_a_quarter_of_it(made, capsys):
    rows = made.run.manifest.data["train_rows"]
    found = run_distill(made.results, "calibration.holdout=null")
    assert held_out(found) == (rows // 4, min(rows - rows // 4, 32))
    assert f"checked on {rows // 4} others" in capsys.readouterr().out
    assert run_distill(made.results, f"calibration.holdout={rows // 4}") == found, "is the same"


@pytest.mark.parametrize("how", ["data.path", "data.root"])
def test_data_that_has_moved_is_given_once_more(made, how):
    shutil.rmtree(made.run.path / "distill")
    config = made.run.path / "config.yaml"
    config.write_text(config.read_text().replace(made.run.config.data.path, str(made.data)))
    moved = made.data.parent.parent / "there"
    made.data.parent.rename(moved)
    with pytest.raises(UserError, match=r"pets: there is no such file or folder.*data\.path=PLACE"):
        run_distill(made.results)
    where = {"data.path": moved / "pets", "data.root": moved}[how]
    assert run_distill(made.results, f"{how}={where}").is_dir()
    run_evaluate(made.results, f"{how}={where}", *FEW)


def test_other_data_is_refused_for_distilling(made, tmp_path):
    shutil.rmtree(made.run.path / "distill")
    other = write_folder(tmp_path / "other", 40, size=(8, 8), seed=7)
    with pytest.raises(UserError, match=r"are not those that .* was trained on.*data\.path=PLACE"):
        run_distill(made.results, f"data.path={other}")


def test_map_is_evaluated_on_data_whose_classes_have_another_order(made, tmp_path):
    """Accuracy on a test split is the same in whichever order its file lists the classes."""
    labels = [row % 3 for row in range(48)]
    for order in ([0, 1, 2], [2, 0, 1]):
        names = [NAMES[number] for number in order]
        numbers = [order.index(label) for label in labels]
        for split in ("train", "test"):
            write_images(tmp_path / str(order) / f"{split}.parquet", numbers, names)
    accuracies = []
    for order in ([0, 1, 2], [2, 0, 1]):
        shutil.rmtree(made.run.path / "evaluate")
        run_evaluate(made.results, f"data.path='{tmp_path / str(order)}'", *FEW)
        accuracies.append([row["accuracy"] for row in metrics(made.results)["rows"]])
    assert accuracies[0] == accuracies[1]
    assert min(accuracies[0]) < 1, "some are wrong, so that an order would show"
    write_images(tmp_path / "unnamed" / "train.parquet", labels)
    write_images(tmp_path / "unnamed" / "test.parquet", labels)
    with pytest.raises(UserError, match=r"class 0 in row 0 .* the 3 classes .*ant, bee, cat"):
        run_evaluate(made.results, f"data.path={tmp_path / 'unnamed'}", *FEW)


def test_path_is_for_runs_on_own_data(pipeline):
    with pytest.raises(UserError, match=r"data\.path=x is for a run on your own data.*data\.root"):
        run_distill(pipeline.results, "data.path=x")


def test_inputs_of_a_benchmark_are_recorded_from_own_data(made):
    config = made.run.path / "config.yaml"
    config.write_text(config.read_text().replace(made.run.config.data.path, str(made.data)))
    file = run_benchmark(made.results, "inputs=recorded", f"teacher={made.run.path}")
    inputs = read_json(file)["inputs"]
    assert (inputs["kind"], inputs["teacher"]) == ("recorded", made.run.name)
    assert inputs["data"], "what identifies the own data"


def test_texts_go_through_all_stages(tmp_path):
    file = write_csv(tmp_path / "news.csv", **sentences(150))
    trained = run_own(tmp_path / "results", "texts", file, *TEXTS)
    run_distill(tmp_path / "results")
    run_evaluate(tmp_path / "results", *FEW)
    record = metrics(tmp_path / "results")
    assert (record["data"], record["test"]["rows"]) == ("news", 30)
    baseline = next(row for row in record["rows"] if row["key"] == "baseline_svm")
    assert baseline["accuracy"] == 1.0, "each text names its class"
    assert read_json(trained.path / CLASSES) == list(NAMES)


def test_masked_language_model_goes_through_all_stages_and_starts_a_classifier(tmp_path):
    for split, rows in (("train", 120), ("val", 40), ("test", 40)):
        write_csv(tmp_path / "news" / f"{split}.csv", **sentences(rows))
    results = tmp_path / "results"
    trained = run_own(results, "texts_mlm", tmp_path / "news", *TEXTS)
    # Of the blocks that the rows are joined to, not of the rows.
    assert held_out(run_distill(results, "calibration.holdout=null"))[0] < 120 // 4
    run_evaluate(results, *FEW)
    assert metrics(results)["objective"] == "mlm"
    finer = run_own(results, "texts", tmp_path / "news", *TEXTS, f"init_from={trained.name}")
    assert finer.manifest.initial.run == trained.name


def test_place_without_data_is_refused_before_pytorch_is_loaded(tmp_path):
    code = (
        "import sys; from asap_exp.core.composing import compose\n"
        "from asap_exp.core.config import TrainConfig; from asap_exp.train.__main__ import run\n"
        "try:\n    run(compose('train', sys.argv[1:], TrainConfig))\n"
        "except ValueError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    words = ["task=images", f"data.path={tmp_path / 'nothing'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert "there is no such file or folder" in done.stdout
