"""Tables, figures and page come from records alone."""

import copy
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.records.columns import Average
from asap_exp.report.accuracy_figure import (
    NAMED,
    PALE,
    accuracy_latency,
    beyond_words,
    coordinates,
    front,
    rows_of,
    visible,
)
from asap_exp.report.averages import averaged_rows
from asap_exp.report.captions import caption, group_title, origins, training_rows
from asap_exp.report.csv_table import tables_csv
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group
from asap_exp.report.groups import grouped as grouped_records
from asap_exp.report.markdown import summary_lines, tables_markdown
from asap_exp.report.notes import UNFUSED, remarks
from asap_exp.report.palette import BLUE, ORANGE
from asap_exp.report.pareto import quality
from asap_exp.report.summary_figure import summary
from asap_exp.report.training_figure import training
from tests.conftest import Pipeline
from tests.records import (
    of_one_layer,
    published,
    typed,
    with_budget,
    with_objective,
    with_seed,
    with_test_rows,
    without_samples,
)
from tests.stages import run_report


def grouped(records: list[dict[str, Any]]) -> list[Group]:
    return grouped_records(map(typed, records))


@pytest.fixture
def record(shared_pipeline: Pipeline) -> dict[str, Any]:
    return read_json(shared_pipeline.record)


@pytest.mark.slow
def test_report_writes_everything_below_out(pipeline: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "out"
    page = run_report(pipeline.results, f"out={out}")
    assert page == out / "index.html"
    assert len(list((out / "records").glob("*.json"))) == 1
    figures = sorted(file.name.rsplit("-", 1)[1] for file in (out / "figures").iterdir())
    of_group = ["accuracy_latency.png", "fidelity.png", "plans.png", "training.png"]
    assert figures == sorted(["digits.png", *of_group]), "and the curves of the softmax run"
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in (out / "figures").iterdir())
    assert page.read_text().count("data:image/webp;base64,") == 5


@pytest.mark.slow
def test_report_of_a_task_leaves_out_what_earlier_reports_gathered(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    out = f"out={tmp_path / 'out'}"
    assert run_report(pipeline.results, out) is not None
    with pytest.raises(UserError, match="there is no finished training and no evaluation"):
        run_report(pipeline.results, out, "task=cifar")
    assert run_report(pipeline.results, out, "task=digits") is not None


@pytest.mark.slow
def test_records_are_kept_when_their_runs_are_gone(pipeline: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_report(pipeline.results, f"out={out}")
    before = (out / "tables.md").read_text()
    run_report(tmp_path / "empty", f"out={out}")
    assert (out / "tables.md").read_text() == before


def test_seeds_are_averaged_with_their_sample_deviation(record: dict[str, Any]) -> None:
    groups = grouped([with_seed(record, 0, 0.90), with_seed(record, 1, 0.94)])
    assert len(groups) == 1
    teacher = averaged_rows(groups[0])[0]
    assert teacher.mean("accuracy") == pytest.approx(0.92)
    assert teacher["accuracy"].std == pytest.approx(0.02 * 2**0.5)
    assert "92.00 ± 2.83" in tables_markdown(groups)


def test_repeated_evaluation_is_no_further_seed(record: dict[str, Any]) -> None:
    later = without_samples(record)
    later["manifests"]["evaluate"]["ended"] = "9999-01-01T00:00:00+00:00"
    later["rows"][0]["accuracy"] = 0.125
    for records in ([record, later], [later, record]):
        (group,) = grouped(records)
        assert len(group.records) == 1
        assert averaged_rows(group)[0]["accuracy"] == Average(0.125, None)


def test_calibration_seed_is_no_seed_of_the_training(record: dict[str, Any]) -> None:
    other = copy.deepcopy(record)
    other["artifact"]["calibration"]["seed"] = 1
    assert len(grouped([record, other])) == 2


def test_one_compiled_layer_is_not_called_all_layers(record: dict[str, Any]) -> None:
    (group,) = grouped([of_one_layer(record)])
    assert group_title(group).endswith(", 1 of 2 layers")
    assert summary_lines([group]) == []
    assert len(summary_lines(grouped([record]))) == 3


def test_title_says_what_the_model_reads(record: dict[str, Any]) -> None:
    assert group_title(*grouped([record])) == "digits (subset), n = 4, with qk_norm"


def test_training_subset_is_called_a_subset(record: dict[str, Any]) -> None:
    assert "4 batches per epoch only" in training_rows(typed(record))
    record["manifests"]["train"]["data"]["train_split_rows_in_all"] = 9999
    assert "a SUBSET of the split's 9999" in training_rows(typed(record))


def test_other_configurations_are_not_averaged(record: dict[str, Any]) -> None:
    other = {**with_test_rows(record, 47, 540), "run": "digits/vit-sinkhorn/0-s3"}
    assert len(grouped([record, other])) == 2
    other = with_budget(record)
    assert len(grouped([record, other])) == 2
    slower = with_budget(record, model_ms=2.0)
    assert len(grouped([other, {**slower, "run": "digits/vit-sinkhorn/0-s3"}])) == 1


def test_mean_leaves_out_what_was_not_measured(record: dict[str, Any]) -> None:
    def averaged(kls: list[float | None]) -> Average | None:
        records = [with_seed(record, seed) for seed in range(len(kls))]
        for each, kl in zip(records, kls, strict=True):
            each["rows"][1]["kl"] = kl
        (group,) = grouped(records)
        return averaged_rows(group)[1]["kl"]

    assert averaged([None, 2.0, 4.0]) == Average(3.0, pytest.approx(2**0.5))
    assert averaged([1.0]) == Average(1.0, None)
    assert averaged([None]) is None


def test_latency_of_one_record_has_its_quartiles(record: dict[str, Any]) -> None:
    rows = averaged_rows(*grouped([record]))
    ms = record["rows"][0]["layer_ms"]
    assert rows[0]["layer_ms"] == Average(ms["median"], quartiles=(ms["q1"], ms["q3"]))
    two = averaged_rows(*grouped([with_seed(record, 0), with_seed(record, 1)]))
    assert two[0]["layer_ms"] == Average(ms["median"], 0.0)


def test_cell_that_was_not_measured_is_empty(record: dict[str, Any]) -> None:
    lines = tables_markdown(grouped([record])).splitlines()
    row = next(line for line in lines if "softmax, same recipe" in line and line.count("|") > 9)
    assert row.split("|")[5].strip() == ""


def test_subset_is_called_a_subset(record: dict[str, Any]) -> None:
    assert "SUBSET of 48 of 540" in caption(typed(record))
    assert "all 540 test images" in caption(typed(with_test_rows(record, 540, 540)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "key", "usual", "far"),
    [("classification", "accuracy", 0.9, 0.25), ("mlm", "perplexity", 10.0, 3000.0)],
)
def test_figure_ends_where_methods_are_far_worse_than_the_teacher(
    record: dict[str, Any], objective: str, key: str, usual: float, far: float
) -> None:
    rows = [
        {**row, key: far if row["key"] in ("control_uniform", "truncated_1") else usual}
        for row in record["rows"]
    ]
    changed = without_samples(with_objective(record, objective)) | {"rows": rows}
    (group,) = grouped([changed])
    (axes,) = accuracy_latency(group).axes
    low, high = axes.get_ylim()
    scale = quality(group).scale
    assert low <= scale * usual <= high
    assert not low <= scale * far <= high
    names = axes.get_legend_handles_labels()[1]
    assert "ASAP" in names
    assert "control: uniform" not in names
    label, side = axes.get_xlabel(), "above" if objective == "mlm" else "below"
    assert f"2 methods {side} the axis: " in label
    assert f"control: uniform attention ({quality(group).number(far)})" in " ".join(label.split())


def test_figure_names_some_methods_beyond_the_axis_and_counts_the_rest(
    record: dict[str, Any],
) -> None:
    far = ("control_", "truncated_", "asap")
    rows = [
        {**row, "accuracy": 0.2 if row["key"].startswith(far) else 0.9} for row in record["rows"]
    ]
    (group,) = grouped([without_samples(record) | {"rows": rows}])
    hidden = [row for row in rows_of(group) if row.key.startswith(far)]
    words = beyond_words(group)
    assert words.startswith(f"{len(hidden)} methods below the axis: ")
    assert words.endswith(f" and {len(hidden) - NAMED} more")
    assert words.count("(20.00)") == NAMED
    level = [{**row, "accuracy": 0.9} for row in record["rows"]]
    (group,) = grouped([without_samples(record) | {"rows": level}])
    assert beyond_words(group) == ""


def test_figure_has_room_for_error_bars() -> None:
    """Three maps of one teacher, of which the mean is the best of all methods."""
    (group,) = grouped([published("cifar-vit-sinkhorn-c88251a1-s0-a2ecd18d")])
    (axes,) = accuracy_latency(group).axes
    (asap,) = (row for row in rows_of(group) if row.group == "asap")
    average = asap["accuracy"]
    assert average is not None
    assert average.std is not None
    assert axes.get_ylim()[1] > 100 * (average.mean + average.std)


def test_the_teachers_star_hides_no_other_marker(record: dict[str, Any]) -> None:
    (group,) = grouped([record])
    (axes,) = accuracy_latency(group).axes
    orders: dict[bool, list[float]] = {True: [], False: []}
    for line in axes.lines:
        if line.get_marker() not in ("", "None", "_", "|") and len(line.get_xdata()):
            orders[line.get_marker() == "*"].append(line.get_zorder())
    assert max(orders[True]) < min(orders[False])


def test_titles_of_trainings_that_differ_in_their_epochs_name_them(record: dict[str, Any]) -> None:
    def after(epochs: int) -> dict[str, Any]:
        value = copy.deepcopy(record) | {"run": f"digits/vit-sinkhorn/{epochs:08d}-s0"}
        train = value["manifests"]["train"]
        train["epochs"] = train["config"]["recipe"]["epochs"] = epochs
        return value

    titles = [group_title(group) for group in grouped([after(2), after(1)])]
    assert sorted(titles)[0].endswith(", 1 epoch")
    assert sorted(titles)[1].endswith(", 2 epochs")
    assert "epoch" not in group_title(*grouped([after(2)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hollow"), [("wikitext", True), ("cifar-vit-sinkhorn-c88251a1-s0-a2ecd18d", False)]
)
def test_controls_that_were_not_fused_are_hollow_and_said_to_be(name: str, hollow: bool) -> None:
    (group,) = grouped([published(name)])
    (axes,) = accuracy_latency(group).axes
    names = axes.get_legend_handles_labels()[1]
    assert ("control: no slices (hollow: not fused)" in names) == hollow
    assert (UNFUSED in remarks(group)) == hollow
    assert axes.get_ylabel() == (
        "test perplexity, lower is better" if name == "wikitext" else "test accuracy %"
    )


@pytest.mark.slow
def test_labels_of_truncations_keep_off_markers_and_pale_ones_are_explained() -> None:
    """On the teacher with the most maps."""
    (group,) = grouped([published("cifar-vit-sinkhorn-f9c05404-s0-e7c8e40c")])
    figure = accuracy_latency(group)
    (axes,) = figure.axes
    assert PALE in axes.get_legend_handles_labels()[1]
    figure.draw_without_rendering()
    points = np.transpose(coordinates(visible(group), quality(group), 1.0))
    boxes = [text.get_window_extent().padded(2) for text in axes.texts]
    assert len(boxes) > 15
    for point in axes.transData.transform(points):
        assert not any(box.contains(*point) for box in boxes)


def test_curve_of_maps_joins_what_no_faster_one_is_better_than(record: dict[str, Any]) -> None:
    (group,) = grouped([record])
    rows = sorted(
        (row for row in averaged_rows(group) if row["model_ms"]), key=lambda r: r.mean("model_ms")
    )
    joined = front(rows, quality(group))
    accuracies = [row.mean("accuracy") for row in joined]
    assert joined[0] == rows[0]
    assert accuracies == sorted(set(accuracies))
    assert accuracies[-1] == max(row.mean("accuracy") for row in rows)


@pytest.mark.slow
def test_summary_needs_a_group_with_all_its_maps(record: dict[str, Any]) -> None:
    assert summary(grouped([record])) is None
    maps = {"asap": {"key": "map_a", "label": "ASAP, 3 slices"}}
    figure = summary(grouped([record, {**record, "maps": maps}]))
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title().startswith("4 tokens\nASAP ")


def test_training_without_validation_shows_the_loss_alone(record: dict[str, Any]) -> None:
    plans = ["column error of the plans", "largest logit"]
    assert panels(record) == ["loss", "validation accuracy %", *plans]
    for row in record["curves"]:
        row.pop("val/accuracy", None)
        row.pop("val/loss", None)
    assert panels(record) == ["training loss (as trained)", *plans]
    for row in record["curves"]:
        for name in [name for name in row if name.startswith("plan/")]:
            del row[name]
    assert panels(record) == ["training loss (as trained)"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_losses_of_training_and_validation_share_a_panel(
    record: dict[str, Any], seeds: int
) -> None:
    records = [record, with_seed(record, 7)][:seeds]
    losses = training(*grouped(records)).axes[0]
    legend = losses.get_legend()
    shown = dict(zip(legend.get_texts(), legend.get_lines(), strict=True))
    colours = {text.get_text(): line.get_color() for text, line in shown.items()}
    assert colours == {"training (as trained)": BLUE, "validation": ORANGE}
    last = record["curves"][-1]
    drawn = [line for line in losses.lines if line.get_color() == ORANGE]
    assert len(drawn) == (1 if seeds == 1 else 1 + seeds)
    assert drawn[0].get_ydata()[-1] == pytest.approx(last["val/loss"])


@pytest.mark.slow
def test_records_without_curves_have_no_figure_of_the_training(record: dict[str, Any]) -> None:
    without = with_seed(record, 7) | {"curves": []}
    figures = [list(group_figures(*grouped(some))) for some in ([without], [record, without])]
    assert figures[0] == ["accuracy_latency", "plans", "fidelity"]
    assert figures[1] == ["accuracy_latency", "training", "plans", "fidelity"]


def panels(record: dict[str, Any]) -> list[str]:
    return [axes.get_ylabel() for axes in training(*grouped([record])).axes if axes.axison]


def test_csv_has_every_row_unrounded(record: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(tables_csv(grouped([record])))))
    assert len(rows) == len(record["rows"])
    assert float(rows[0]["layer_ms_median"]) == record["rows"][0]["layer_ms"]["median"]


def test_csv_marks_rows_of_subsets(record: dict[str, Any]) -> None:
    def marks(value: dict[str, Any]) -> set[tuple[str, str]]:
        rows = csv.DictReader(io.StringIO(tables_csv(grouped([value]))))
        return {(row["train_subset"], row["test_subset"]) for row in rows}

    limited = copy.deepcopy(record)
    limited["manifests"]["train"]["data"]["train_split_rows_in_all"] += 1
    assert marks(with_test_rows(record, 540, 540)) == {("False", "False")}
    assert marks(with_test_rows(record, 47, 540)) == {("False", "True")}
    assert marks(with_test_rows(limited, 540, 540)) == {("True", "False")}


def test_run_is_taken_by_its_name(pipeline: Pipeline) -> None:
    page = run_report(pipeline.results, f"run={pipeline.teacher.name}")
    assert page is not None
    assert pipeline.teacher.name in (page.parent / "tables.csv").read_text()


def test_mistyped_run_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        run_report(pipeline.results, f"run={tmp_path / 'nowhere'}")


def test_nothing_to_report_gives_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m asap_exp\.train task=cifar"):
        run_report(tmp_path, "task=cifar")


def test_seeds_of_pre_trained_runs_are_one_group(record: dict[str, Any]) -> None:
    """Each seed has a pre-training of its own, all by one recipe."""

    def pretrained(seed: int, recipe: str = "r", attention: str = "sinkhorn") -> dict[str, Any]:
        copied = copy.deepcopy(record)
        train = copied["manifests"]["train"]
        copied |= {"seed": seed, "run": f"run{seed}{recipe}{attention}"}
        train["seed"] = copied["manifests"]["evaluate"]["seed"] = seed
        train["config"] |= {"seed": seed, "init_from": f"digits_mlm/x/{recipe}-s{seed}"}
        train["initial"] = {
            "run": f"digits_mlm/x/{recipe}-s{seed}",
            "teacher_sha256": f"{recipe}{seed}",
            "task": "digits_mlm",
            "attention": attention,
            "recipe_hash": recipe,
        }
        return copied

    alike = [pretrained(0), pretrained(1)]
    others = [record, pretrained(0, "other"), pretrained(0, attention="softmax")]
    groups = grouped([*alike, *others])
    assert sorted(len(group.records) for group in groups) == [1, 1, 1, 2]
    averaged = next(group for group in groups if len(group.records) == 2)
    assert ["initial weights", "of task digits_mlm"] in origins(averaged)
    assert "initial weights" not in dict(origins(Group("x", [typed(record)])))


@pytest.mark.slow
def test_run_of_another_task_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    run = f"run={pipeline.teacher.path}"
    with pytest.raises(UserError, match="was trained on task digits, but task=cifar was asked for"):
        run_report(pipeline.results, run, "task=cifar", f"out={tmp_path}")
    assert run_report(pipeline.results, run, "task=digits", f"out={tmp_path}") is not None


def with_other_data(value: dict[str, Any], stage: str, key: str) -> dict[str, Any]:
    copied = copy.deepcopy(value)
    copied["manifests"][stage]["data"][key] = "f" * 64
    return copied


@pytest.mark.parametrize("place", [("train", "train_sha256"), ("evaluate", "test_sha256")])
def test_other_data_is_no_further_seed(record: dict[str, Any], place: tuple[str, str]) -> None:
    alone = grouped([record])
    same = [with_seed(record, seed) for seed in (0, 1)]
    groups = grouped([*same, with_other_data(with_seed(record, 2), *place)])
    assert sorted(len(group.records) for group in groups) == [1, 2]
    assert len({group.slug for group in groups}) == len({group_title(g) for g in groups}) == 2
    # Data that is alone under a configuration has the name that it always had.
    assert [group.slug for group in grouped([with_other_data(record, *place)])] == [alone[0].slug]
    assert all(group.slug.startswith(f"{alone[0].slug}-") for group in groups)


def test_an_evaluation_on_other_data_does_not_replace_one(
    record: dict[str, Any],
) -> None:
    assert len(grouped([record, with_other_data(record, "evaluate", "test_sha256")])) == 2
