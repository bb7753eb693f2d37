"""Benchmark records on disk: sealed, checked when they are read, shown and not obeyed."""

import copy
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from asap_exp.core.config import PathsConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_json
from asap_exp.report.benchmark_figure import time_figure
from asap_exp.report.benchmark_markdown import benchmark_csv, benchmark_markdown, summary_lines
from asap_exp.report.benchmark_records import FORMAT, load_records, read_record
from asap_exp.report.benchmarks import report_benchmarks
from tests.records import published, typed_benchmark, unsealed, untagged, write_sealed_record

NAME = "nvidia-h200-forward-recorded"
OLD = "nvidia-h100-80gb-hbm3-train-random-ead"  # names no routes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["rows"][0]["cells"][1]["ms"].update(median=1e308), "median"),
        (lambda r: r["rows"][0]["cells"][1].update(ms=None), "status=timed does not fit ms"),
        (lambda r: r["rows"][0]["cells"][1].update(status="fast"), "status"),
        (lambda r: r["rows"][0]["cells"].pop(), "has other methods than the first"),
        (lambda r: r["rows"][1].update(n=0), r"rows\.1\.n"),
        (lambda r: r["rows"].append(r["rows"][0]), "names a length twice"),
        (lambda r: r["ceilings"].update(product_tflops="787"), "product_tflops"),
        (lambda r: r["inputs"].pop("teacher"), "are of recorded inputs, all three"),
        (lambda r: r["manifest"].pop("hardware"), r"manifest\.hardware"),
        (
            lambda r: r["manifest"].update(status="failed"),
            "no manifest of benchmark that says",
        ),
        (lambda r: r.update(rows=[]), "rows"),
        (lambda r: r.update(mode="backward"), "mode"),
        (lambda r: r.update(format=99), "is of a newer version"),
        (lambda r: r.update(name="../x"), "name"),
        (lambda r: r.update(name=""), "name"),
    ],
)
def test_a_damaged_benchmark_is_a_sentence(
    tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    value = unsealed(published(f"benchmark/{NAME}"))
    change(value)
    file = tmp_path / "a.json"
    write_sealed_record(file, value)
    with pytest.raises(UserError, match=rf"a\.json .*{words}"):
        read_record(file)


def test_an_edited_benchmark_is_refused(tmp_path: Path) -> None:
    value = published(f"benchmark/{NAME}")
    value["rows"][0]["cells"][1]["ms"]["median"] *= 1.00001
    write_json(tmp_path / "a.json", value)
    with pytest.raises(UserError, match=r"was changed .* with: python -m asap_exp\.benchmark"):
        read_record(tmp_path / "a.json")
    write_json(tmp_path / "a.json", unsealed(value) | {"format": FORMAT})
    with pytest.raises(UserError, match="sha256 is missing"):
        read_record(tmp_path / "a.json")


def test_record_that_names_routes_has_a_table_of_them() -> None:
    value = unsealed(published(f"benchmark/{OLD}"))
    assert "Kernels, as operator" not in benchmark_markdown([typed_benchmark(value)])
    for row in value["rows"]:
        del row["absorbed_heads"]
        for cell in row["cells"]:
            cell["routes"] = ["sinkhorn: tiled"] if cell["backend"] == "triton" else []
    record = typed_benchmark(value)
    new = benchmark_markdown([record])
    assert "<summary>Kernels, as operator: route</summary>" in new
    assert "sinkhorn: tiled" in new
    (first, *_) = csv.DictReader(io.StringIO(benchmark_csv([record])))
    assert {first["absorbed_heads"], first["routes"]} <= {"", "sinkhorn: tiled"}


@pytest.mark.slow
def test_a_bad_benchmark_stops_no_other_and_writes_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = published(f"benchmark/{NAME}")
    paths = PathsConfig(results=str(tmp_path / "results"))
    runs = paths.runs / "benchmark"
    write_json(runs / "renamed" / "metrics.json", good)
    write_sealed_record(runs / "evil" / "metrics.json", good | {"name": "../../../../evil"})
    write_json(runs / "empty" / "metrics.json", [])
    out = tmp_path / "a" / "out"
    write_json(out / "records" / "benchmark" / "bad.json", None)
    assert report_benchmarks(paths, out)
    output = capsys.readouterr()
    assert output.err.count("warning: left out: ") == 3
    assert "named above: 1" in output.out
    written = {file.name for file in tmp_path.rglob("*.*") if runs not in file.parents}
    assert written == {
        f"{good['name']}.json",
        f"benchmark_{good['name']}.png",
        "bad.json",
        "benchmark.md",
        "benchmark.csv",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["<img src=x>", "a|b\n| c | d |", "`x`", "=cmd()", "$x$ $\\frac{", "# h"]
)
def test_words_of_a_benchmark_are_shown_and_not_obeyed(words: str) -> None:
    value = unsealed(published(f"benchmark/{NAME}"))
    plain = benchmark_markdown([typed_benchmark(value)]).splitlines()
    changed = copy.deepcopy(value) | {"device": words, "dtype": words}
    changed["left_out"] = [words]
    changed["manifest"]["versions"] |= {"torch": words, "triton": words}
    for row in changed["rows"]:
        for cell in row["cells"]:
            cell |= {"label": words, "operator": words, "backend": words}
    record = typed_benchmark(changed)
    text = benchmark_markdown([record])
    assert "<" not in untagged(text)
    shape = [line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"]
    assert shape == [line.count("|") for line in plain if line[:1] == "|"]
    assert sum(line.startswith("#") for line in text.splitlines()) == 2
    for cells in csv.reader(io.StringIO(benchmark_csv([record]))):
        assert not any(cell[:1] in tuple("=+-@") for cell in cells)
    figure = time_figure(record)
    figure.draw_without_rendering()
    plt.close(figure)


def test_every_published_benchmark_is_read() -> None:
    folder = Path(__file__).resolve().parents[2] / "results" / "records" / "benchmark"
    assert len(load_records(folder, strict=True)) == len(list(folder.glob("*.json"))) > 2


def test_summary_has_forward_passes_in_bfloat16_alone() -> None:
    value = published(f"benchmark/{NAME}")
    lengths = len(value["rows"])
    others = [value | {"dtype": "float32"}, value | {"mode": "train"}]
    shown = summary_lines([typed_benchmark(x) for x in (value, *others)])
    assert len(shown) == lengths + 2
    assert all("recorded inputs" in line for line in shown[2:])
