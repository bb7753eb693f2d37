"""The report of runs that were trained and not evaluated: their curves and final numbers."""

import copy
import csv
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from asap_exp.core.composing import compose
from asap_exp.core.config import ReportConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.runs import Run
from asap_exp.core.typed import made
from asap_exp.report.check import check
from asap_exp.report.trainings import TRAININGS, Comparison, compared, record_of
from asap_exp.report.trainings_figure import MOST, learning_curves
from asap_exp.report.trainings_table import markdown_of, page_table, trainings_csv
from tests.conftest import Pipeline
from tests.stages import run_report


@pytest.fixture
def trained(shared_pipeline: Pipeline, tmp_path: Path) -> Path:
    """Results of a softmax and a Sinkhorn run, of which neither was evaluated."""
    left_out = shutil.ignore_patterns("distill", "evaluate", "checkpoints", "report")
    shutil.copytree(shared_pipeline.results, tmp_path / "results", ignore=left_out)
    return tmp_path / "results"


def runs(results: Path) -> list[Run]:
    return [Run(file.parent) for file in sorted(results.glob("runs/*/*/*/config.yaml"))]


@pytest.fixture
def record(trained: Path) -> dict[str, Any]:
    return record_of(runs(trained)[0])


def comparisons(values: list[dict[str, Any]]) -> list[Comparison]:
    return compared([made(TRAININGS.type, value, Path("record")) for value in values], ())


@pytest.mark.slow
def test_page_shows_curves_and_numbers_of_runs_without_an_evaluation(trained: Path) -> None:
    page = run_report(trained)
    assert page is not None
    html = page.read_text()
    rows = re.findall(r'<td data-label="validation accuracy %" data-value="([\d.]+)"', html)
    best = sorted((run.manifest.best_val_accuracy or 0.0 for run in runs(trained)), reverse=True)
    assert [float(row) for row in rows] == best
    assert html.count("data:image/webp;base64,") == 1
    assert 'href="#result"' not in html
    assert (page.parent / "figures" / "trainings-digits.png").is_file()
    told = list(csv.DictReader((page.parent / "trainings.csv").open()))
    assert [float(row["validation_accuracy"]) for row in told] == best
    assert "| softmax |" in (page.parent / "tables.md").read_text()


@pytest.mark.slow
def test_evaluated_run_has_its_own_section_instead(pipeline: Pipeline) -> None:
    page = run_report(pipeline.results)
    assert page is not None
    told = list(csv.DictReader((page.parent / "trainings.csv").open()))
    assert [row["attention"] for row in told] == ["softmax"]
    assert 'href="#result"' in page.read_text()


@pytest.mark.slow
def test_trainings_are_kept_when_their_runs_are_gone(trained: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'out'}"
    page = run_report(trained, out)
    assert page is not None
    before = page.read_text()
    run_report(tmp_path / "empty", out)
    assert page.read_text() == before


@pytest.mark.slow
def test_one_run_and_one_task_alone(trained: Path, tmp_path: Path) -> None:
    run = runs(trained)[0]
    page = run_report(trained, f"run={run.path}")
    assert page is not None
    assert (page.parent / "trainings.csv").read_text().count("\n") == 2
    with pytest.raises(
        UserError, match=r"no finished training and no evaluation.* begin with: .*train task=cifar"
    ):
        run_report(trained, "task=cifar", f"out={tmp_path / 'out'}")


@pytest.mark.slow
def test_check_counts_trainings(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(compose("report", [f"paths.results={trained}"], ReportConfig))
    assert "0 evaluations, 2 trainings and 0 benchmarks" in capsys.readouterr().out


@pytest.mark.slow
def test_unfinished_and_damaged_runs_are_left_out(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = runs(trained)
    first.weights.unlink()
    second.curves.write_text("[")
    with pytest.raises(UserError, match="no finished training"):
        run_report(trained)
    assert "curves.json" in capsys.readouterr().err


def other(record: dict[str, Any], run: str, seed: int = 0, **settings: Any) -> dict[str, Any]:
    """The same training with another name, seed and settings."""
    found = copy.deepcopy(record)
    found["run"], found["manifest"]["seed"] = run, seed
    for name, value in settings.items():
        group, key = name.split("__")
        found["manifest"]["config"][group][key] = value
    return found


def test_seeds_are_averaged_and_recipes_told_apart_by_what_varies(record: dict[str, Any]) -> None:
    name = "digits/vit-softmax/0"
    worse = other(record, f"{name}-s0", recipe__lr=0.5)
    seeds = [other(record, f"{name[:-1]}1-s{seed}", seed, recipe__lr=0.1) for seed in (0, 1)]
    for value, accuracy in zip((worse, *seeds), (0.25, 0.5, 0.75), strict=True):
        value["manifest"]["best_val_accuracy"] = accuracy
    (found,) = comparisons([worse, *seeds])
    assert [(each.settings, len(each.records)) for each in found.trained] == [
        ("recipe.lr=0.1", 2),
        ("recipe.lr=0.5", 1),
    ]
    first, second = page_table(found).bodies[0].lines
    assert (first.cells[1].text, first.cells[1].deviation) == ("62.50", "± 17.68")
    assert (first.cells[1].best, second.cells[1].best) == (True, False)
    assert "62.50 ± 17.68" in "\n".join(markdown_of([found]))
    assert trainings_csv([found]).count("\n") == 4


def test_training_without_validation_is_last_and_has_no_number(record: dict[str, Any]) -> None:
    blind = other(record, "digits/vit-softmax/1-s0", data__train_on="train+val")
    blind["manifest"]["best_val_accuracy"] = None
    blind["curves"] = [{"epoch": 0, "train/loss_epoch": 1.0}]
    (found,) = comparisons([blind, record])
    last = page_table(found).bodies[0].lines[-1]
    assert last.cells[0].note == "data.train_on=train+val"
    assert (last.cells[1].text, last.cells[2].text) == ("", "1.000")


def test_curves_are_drawn_for_the_best_that_can_be_told_apart(record: dict[str, Any]) -> None:
    many = [
        other(record, f"digits/vit-softmax/{i}-s0", recipe__lr=1 / (i + 1)) for i in range(MOST + 3)
    ]
    (found,) = comparisons(many)
    figure = learning_curves(found)
    assert figure is not None
    (legend,) = figure.legends
    assert len(legend.get_texts()) == MOST
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == MOST
    for value in many:
        value["curves"] = []
    assert learning_curves(comparisons(many)[0]) is None


def test_masked_language_models_are_judged_by_perplexity(record: dict[str, Any]) -> None:
    texts = [other(record, f"digits/vit-softmax/{i}-s0", data__objective="mlm") for i in (0, 1)]
    for value, perplexity in zip(texts, (9.0, 3.0), strict=True):
        value["manifest"] |= {"best_val_accuracy": None, "best_val_perplexity": perplexity}
        value["curves"] = [{"epoch": 0, "val/perplexity": perplexity}]
    (found,) = comparisons(texts)
    assert [each.first.quality for each in found.trained] == [3.0, 9.0]
    figure = learning_curves(found)
    assert figure is not None
    assert figure.axes[0].get_yscale() == "log"


def test_changed_record_is_left_out(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "records" / "x.json"
    value = record_of(runs(trained)[0])
    value["manifest"]["best_val_accuracy"] = 1.0
    write_json(file, value)
    assert TRAININGS.load(file.parent) == []
    assert "left out" in capsys.readouterr().err
    assert read_json(file) == value
