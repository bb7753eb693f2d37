"""Records on disk: sealed, checked when they are read, gathered from their own run alone."""

import copy
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.report.accuracy_figure import accuracy_latency
from asap_exp.report.csv_table import tables_csv
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import grouped
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.page import html_page
from asap_exp.report.plan_figure import plans
from asap_exp.report.records import FORMAT, load_records, read_record, write_record
from tests.conftest import Pipeline
from tests.records import (
    PUBLISHED,
    published,
    typed,
    unsealed,
    untagged,
    with_data,
    with_seed,
    write_sealed_record,
)
from tests.stages import run_report, run_train


@pytest.fixture
def record(shared_pipeline: Pipeline) -> dict[str, Any]:
    return read_json(shared_pipeline.record)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in nested lists and dicts."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


DAMAGES: dict[str, Callable[[Any], Any]] = {
    "null": lambda _: None,
    "text": lambda x: f"{x}!" if isinstance(x, str) else "damage",
    "number": lambda x: x + 1 if isinstance(x, int | float) else 12345,
    "list": lambda x: [*x, *x[:1]] if isinstance(x, list) and x else [[]],
    "negative": lambda x: -x - 1 if isinstance(x, int | float) else {},
    "truth": lambda x: not x if isinstance(x, bool) else True,
}


def damaged(value: dict[str, Any], place: tuple, kind: str) -> dict[str, Any]:
    changed = copy.deepcopy(value)
    *outer, last = place
    holder = changed
    for key in outer:
        holder = holder[key]
    if kind == "gone":
        del holder[last]
    else:
        holder[last] = DAMAGES[kind](holder[last])
    return changed


def some_damages(value: dict[str, Any], count: int) -> Iterator[tuple[tuple, str, dict[str, Any]]]:
    """Of every part of a record alike, however many values it holds."""
    draw = random.Random(0)
    parts: dict[Any, list[tuple]] = {}
    for place in places(value):
        parts.setdefault(place[:2] if place[0] == "manifests" else place[0], []).append(place)
    for _ in range(count):
        place = draw.choice(draw.choice(list(parts.values())))
        kind = draw.choice(["gone", *DAMAGES])
        changed = damaged(value, place, kind)
        if changed != value:
            yield place, kind, changed


def read_or_sentence(file: Path) -> EvaluationRecord | str:
    try:
        return read_record(file)
    except UserError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "agnews"])
def test_a_changed_value_is_refused_or_makes_no_difference(name: str, tmp_path: Path) -> None:
    value, file = published(name), tmp_path / "record.json"
    write_json(file, value)
    right = tables_csv(grouped([read_record(file)]))
    for place, kind, changed in some_damages(value, 120):
        write_json(file, changed)
        found = read_or_sentence(file)
        if isinstance(found, str):
            assert str(file) in found
            assert "\n" not in found
        else:
            assert tables_csv(grouped([found])) == right, (place, kind)


@pytest.mark.slow
def test_an_unsealed_record_of_another_shape_is_a_sentence(tmp_path: Path) -> None:
    """Whatever is accepted there can be shown."""
    value, file = unsealed(published("digits")), tmp_path / "record.json"
    accepted = 0
    for _, _, changed in some_damages(value, 120):
        write_json(file, changed)
        found = read_or_sentence(file)
        if isinstance(found, str):
            assert str(file) in found
        else:
            accepted += 1
            assert tables_markdown(grouped([found]))
    assert accepted < 60


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["rows"].pop(3), r"right\.bits is not about the rows"),
        (lambda r: (r["rows"].pop(3), r.pop("right")), "changed after it was written"),
        (lambda r: r["rows"][1].update(accuracy=0.99), r"right\.bits of asap gives the accuracy"),
        (lambda r: r["rows"][2].update(label="Sinkhorn"), "changed after it was written"),
        (lambda r: r.pop("sha256"), "sha256 is missing"),
        (lambda r: r.update(sha256=None), "changed after it was written"),
        (lambda r: r["rows"][1].update(accuracy=1e308), r"rows\.1\.accuracy"),
        (lambda r: r["rows"][1].update(group="mine"), r"rows\.1\.group"),
        (lambda r: r["rows"][1]["model_ms"].update(q1=1e6), r"rows\.1\.model_ms"),
        (lambda r: r.update(extra=1), "extra"),
    ],
)
def test_an_edited_record_is_refused(
    record: dict[str, Any], tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    change(record)
    file = tmp_path / "record.json"
    write_json(file, record)
    with pytest.raises(UserError, match=rf"record\.json .*{words}"):
        read_record(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(seed=7), "seed is not what manifests.train.seed says"),
        (lambda r: r.update(data="other"), "data is not what"),
        (lambda r: r.update(qk_norm=not r["qk_norm"]), "qk_norm is not what"),
        (lambda r: r["test"].update(rows=600), r"test: rows=600 are more than of=540"),
        (lambda r: r["rows"].append(r["rows"][0]), "rows must begin with the teacher"),
        (lambda r: r["rows"].append(r["rows"][1]), "rows names a method twice"),
        (lambda r: r["fidelity"].pop(), "fidelity is not about the layers and heads"),
        (lambda r: r["curves"].reverse(), "curves must have a row an epoch"),
        (lambda r: r["plans"]["plans"]["asap"].pop(), "tables of the same shape"),
        (lambda r: r["plans"].update(head=9), "plans is of a layer or head"),
        (
            lambda r: r["manifests"]["train"]["config"].pop("model"),
            r"config\.model: Field required",
        ),
        (lambda r: r["manifests"]["train"]["data"].pop("train_rows"), "train_rows: Field required"),
        (lambda r: r["artifact"].update(teacher_sha256="0" * 64), "artifact.teacher_sha256 is not"),
        (lambda r: r.update(maps={"x": {"key": "x", "label": "x"}}), "maps names a method"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    record: dict[str, Any], change: Callable[[Any], Any], words: str
) -> None:
    change(record)
    with pytest.raises(UserError, match=words):
        typed(record)


def test_published_records_of_before_are_read_without_a_seal(tmp_path: Path) -> None:
    for name in ("digits", "wikitext", "cifar-vit-sinkhorn-f9c05404"):
        value = unsealed(published(name))
        assert value["format"] < FORMAT
        write_json(tmp_path / f"{name}.json", value)
    assert len(load_records(tmp_path, strict=True)) == 3


@pytest.mark.parametrize("stage", ["train", "distill", "evaluate"])
def test_record_without_a_finished_manifest_is_refused(
    record: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    file = tmp_path / "a.json"
    unfinished = copy.deepcopy(record)
    unfinished["manifests"][stage]["status"] = "running"
    del record["manifests"][stage]
    for value in (record, unfinished):
        write_sealed_record(file, value)
        with pytest.raises(UserError, match=f"has no manifest of {stage}"):
            read_record(file)


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"format": 99})
    with pytest.raises(UserError, match="is of a newer version of asap_exp"):
        read_record(tmp_path / "a.json")


@pytest.mark.slow
def test_bad_records_stop_nobody_else(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in a run's folder nor among the records."""
    contents = ("[]", "null", "{", '{"format": 2}')
    (tmp_path / "records").mkdir()
    files = []
    for number, content in enumerate(contents):
        bad = pipeline.record.parents[1] / f"{number}" / "metrics.json"
        bad.parent.mkdir()
        files += [bad, tmp_path / "records" / f"other{number}.json"]
        for file in files[-2:]:
            file.write_text(content)
    page = run_report(pipeline.results, f"out={tmp_path}")
    assert page is not None
    output = capsys.readouterr()
    for file in files:
        assert f"warning: left out: {file}" in output.err
    assert f"Left out of {tmp_path / 'records'}, named above: {len(contents)}" in output.out
    with pytest.raises(UserError, match=str(pipeline.record.parents[1])):
        run_report(pipeline.results, f"out={tmp_path}", f"run={pipeline.teacher.path}")


def test_only_damaged_records_are_nothing_to_report(pipeline: Pipeline, tmp_path: Path) -> None:
    write_json(pipeline.record, {"format": 1})
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "x.json").write_text("[]")
    with pytest.raises(UserError, match=r"that is whole \(1 left out\)"):
        run_report(tmp_path / "empty", f"out={tmp_path}")
    run_report(pipeline.results, f"out={tmp_path}")
    assert "Trainings" in (tmp_path / "index.html").read_text()
    assert len((tmp_path / "trainings.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_the_record_of_another_run_is_not_gathered(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run_train(pipeline.results, "seed=1")
    copied = other.path / "evaluate" / "x" / "metrics.json"
    write_json(copied, read_json(pipeline.record))
    run_report(pipeline.results, f"out={tmp_path}")
    assert f"{copied} is of the run {pipeline.teacher.name}" in capsys.readouterr().err
    assert len(list((tmp_path / "records").glob("*.json"))) == 1


@pytest.mark.parametrize("key", ["data", "run", "task"])
@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "", "a\nb"])
def test_a_record_writes_nothing_outside_out(
    record: dict[str, Any], tmp_path: Path, key: str, name: str
) -> None:
    out = tmp_path / "deep" / "er" / "out"
    changed = with_data(record, name) if key == "data" else record | {key: name}
    write_sealed_record(out / "records" / "a.json", changed)
    with pytest.raises(UserError, match="that is whole"):
        run_report(tmp_path / "empty", f"out={out}")
    assert {file.name for file in tmp_path.rglob("*.*")} == {"a.json"}


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a | b |\n| forged | row |",
    "`code` ``",
    "=cmd()",
    "@SUM(1)",
    "\tx",
    "$x$ $\\frac{",
    "[/bold] [red]",
    "# heading",
]


def with_words(record: dict[str, Any], words: str) -> dict[str, Any]:
    """In every field of free text that is shown."""
    changed = copy.deepcopy(record)
    changed |= {"device": words, "precision": words, "samples": words}
    changed["corruption"] = {"name": words, "severity": 3}
    for row in changed["rows"][1:]:
        row["label"] = words + row["key"]
    train = changed["manifests"]["train"]
    train["data"] |= {"train_on": words}
    train["config"]["recipe"]["keep"] = words
    train["config"]["trainer"]["precision"] = words
    train["hardware"] |= {"cpu": words, "gpu": words}
    train["versions"]["torch"] = words
    train["code"]["commit"] = words
    train["initial"] = {
        "run": "x",
        "teacher_sha256": words,
        "task": words,
        "attention": words,
        "recipe_hash": words,
    }
    changed["artifact"]["calibration"]["steps"] = [words]
    return changed


def shape(text: str) -> list[int]:
    """The cells of every row of every table, and how many headings there are."""
    lines = [line.replace("\\\\", "").replace("\\|", "") for line in text.splitlines()]
    rows = [line.count("|") for line in lines if line.startswith("|")]
    return [*rows, sum(line.startswith("#") for line in lines)]


@pytest.mark.parametrize("words", HOSTILE)
def test_words_of_a_record_are_shown_and_not_obeyed(record: dict[str, Any], words: str) -> None:
    groups = grouped([typed(with_words(record, words))])
    text = untagged(tables_markdown(groups))
    assert "<" not in text
    assert "`" not in text.partition("-->")[2].replace("\\`", "")
    plain = tables_markdown(grouped([typed(with_words(record, "words"))]))
    assert shape(text) == shape(plain)
    for line in tables_csv(groups).splitlines():
        assert line[:1] not in "=@\t"
        assert not any(f",{mark}" in line or f',"{mark}' in line for mark in "=@\t")
    assert "<img src=x" not in html_page(groups, {groups[0].slug: {}})


@pytest.mark.slow
@pytest.mark.parametrize("words", ["$x$ $\\frac{", " ".join(HOSTILE)], ids=["formula", "all"])
def test_words_of_a_record_are_drawn_and_not_obeyed(record: dict[str, Any], words: str) -> None:
    (group,) = grouped([typed(with_words(record, words))])
    for figure in (accuracy_latency(group), plans(group)):
        figure.draw_without_rendering()
        plt.close(figure)


@pytest.mark.slow
def test_a_title_with_a_dollar_or_a_tag_is_shown(
    record: dict[str, Any],
) -> None:
    record["corruption"] = {"name": "<b>$x$|`y`", "severity": 3}
    (group,) = grouped([typed(record)])
    assert ", &lt;b&gt;$x$\\|\\`y\\` of severity 3" in tables_markdown([group])
    figure = group_figures(group)["training"]
    assert ", <b>\\$x\\$|`y` of severity 3" in figure._suptitle.get_text()
    plt.close("all")


@pytest.mark.slow
def test_twenty_seeds_are_drawn_without_a_warning(record: dict[str, Any]) -> None:
    (group,) = grouped([typed(with_seed(record, seed)) for seed in range(40)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in group_figures(group).values():
            figure.draw_without_rendering()
            plt.close(figure)


def test_a_record_is_written_with_its_seal(record: dict[str, Any]) -> None:
    assert record["format"] == FORMAT
    assert record == json.loads(json.dumps(record))
    assert len(record["sha256"]) == 64


@pytest.mark.slow
def test_every_published_record_is_read() -> None:
    files = list(PUBLISHED.glob("*.json"))
    assert len(load_records(PUBLISHED, strict=True)) == len(files) > 20


def test_a_pipe_among_the_records_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "x.json")
    assert load_records(tmp_path) == []
    assert "x.json is a named pipe, not a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: {**x, "format": 3}, r"newer version of asap_exp \(format 3; .*2\); update"),
        (lambda x: {"format": 10**9}, "is of a newer version"),
        (lambda x: [x], r"holds no evaluation record: it is \["),
        (lambda x: None, "holds no evaluation record: it is null"),
        (lambda x: {**x, "format": "2"}, "is no evaluation record of this version"),
    ],
)
def test_what_is_no_record_is_told_from_a_newer_one(
    tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    file = tmp_path / "x.json"
    write_json(file, change(published("digits")))
    with pytest.raises(UserError, match=words):
        read_record(file)


def test_a_record_that_cannot_be_written_ends_the_report(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "records").write_text("in the way")
    with pytest.raises(UserError, match=r"records/.*\.json could not be written"):
        run_report(pipeline.results, f"out={tmp_path}")


def test_numbers_that_may_be_large_are_read(tmp_path: Path) -> None:
    value = unsealed(published("digits"))
    value["rows"][2] |= {"kl": 1e12, "loss": 1e12}
    record = write_record(tmp_path / "x.json", value)
    assert record.rows[2].kl == 1e12
    assert tables_markdown(grouped([record]))


def test_a_record_being_written_is_not_called_damaged(tmp_path: Path) -> None:
    value = unsealed(published("digits"))
    value["rows"][1]["accuracy"] = 2.0
    with pytest.raises(UserError, match=r"x\.json is not written.*rows\.1\.accuracy"):
        write_record(tmp_path / "x.json", value)
