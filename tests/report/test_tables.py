"""Tables on a terminal: by speed, nothing cut, what is beaten said."""

import re

import pytest

from asap_exp.core import console
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.report.benchmark_table import print_benchmark
from asap_exp.report.tables import lines, print_evaluation
from tests.records import published, typed, typed_benchmark

WIDTHS = (80, 100, 140, 200)


def record(name: str = "digits") -> EvaluationRecord:
    return typed(published(name))


def printed(
    found: EvaluationRecord,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> str:
    monkeypatch.setattr(console, "PLAIN_WIDTH", width)
    print_evaluation(found)
    return capsys.readouterr().out


def test_rows_are_in_order_of_speed_and_name_what_beats_them() -> None:
    found = lines(record())
    compared = [line for line in found if line.number]
    times = [line.row.model_ms.median for line in compared]
    assert times == sorted(times)
    assert [line.number for line in compared] == list(range(1, len(compared) + 1))
    for line in compared:
        if line.beaten_by is not None:
            other = compared[line.beaten_by - 1].row
            assert other.accuracy >= line.row.accuracy
            assert other.model_ms.median <= line.row.model_ms.median
    alone = {line.row.key for line in found if not line.number}
    assert alone == {"asap_layer_0", "asap_layer_1", "asap_layer_2", "softmax_trained"}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["digits", "imdb", "wikitext"])
def test_no_cell_is_cut_and_no_name_of_the_own_map_is_wrapped(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found = record(name)
    text = printed(found, width, monkeypatch, capsys)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= width
    for name in ("row softmax in the teacher's place", "control: uniform attention", "ASAP, all"):
        assert re.search(rf"^ *\d* +{name}", text, re.MULTILINE)
    assert "accuracy" in text or "acc." in text or "ppl" in text


@pytest.mark.slow
def test_a_narrow_terminal_does_without_columns_and_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    wide = printed(record(), 200, monkeypatch, capsys)
    narrow = printed(record(), 80, monkeypatch, capsys)
    assert "Left out" not in wide
    assert "Left out, for the table to be narrow enough: L1 row distance, peak MiB" in " ".join(
        narrow.split()
    )
    for heading in ("model", "beaten"):
        assert heading in narrow


def test_benchmark_has_a_row_per_method_fastest_first(capsys: pytest.CaptureFixture) -> None:
    print_benchmark(typed_benchmark(published("benchmark/nvidia-h200-forward-random-graph-3f9")))
    names = re.findall(r"^ (\w.*?)  +[\d.]+ \(", capsys.readouterr().out, re.MULTILINE)
    assert names[0] == "flash softmax"
    assert names[-2:] == ["Sinkhorn T = 20, eager", "attention espformer"]
    assert len(names) == 18
