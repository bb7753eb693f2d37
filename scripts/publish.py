"""Publish records: copy them to results/records, and make tables, figures and texts again.

Usage: python scripts/publish.py                           (or: make publish)
       python scripts/publish.py results/report/records/RECORD.json
       python scripts/publish.py results/runs/benchmark/NAME/metrics.json --force

A record is an evaluation, a benchmark, one of training steps or the report of `make test-gpu`. It
is refused, with every reason, if it is of uncommitted code, of no row of conf/reproduce, of a
subset, or shorter than its row. Without a record only what is made from the published ones is
written again: tables, figures, page, docs/paper.md, and the tables in README.md and docs/.
"""

import argparse
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from rows import composed_evaluation, load_row, published, row_of
from update_readme import DOCS, DOCUMENTS, RESULTS, update_documents

from asap_exp.core.console import warn
from asap_exp.core.errors import UserError
from asap_exp.core.failures import sentences
from asap_exp.core.files import read_json, read_text, write_bytes, write_json, write_text
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.steps import StepRecord
from asap_exp.core.sealed import sealed
from asap_exp.report import benchmark_records
from asap_exp.report.benchmarks import write_benchmarks
from asap_exp.report.csv_table import tables_csv
from asap_exp.report.drawing import image
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import grouped, newest
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.page import html_page
from asap_exp.report.paper import write_paper
from asap_exp.report.paper_page import Page
from asap_exp.report.records import EVALUATIONS, METRICS, load_records
from asap_exp.report.step_records import STEPS
from asap_exp.report.step_records import load_records as load_steps
from asap_exp.report.step_table import write_steps
from asap_exp.report.summary_figure import summary

GPU_TESTS = "gpu_tests.json"


def main() -> None:
    """Copy the chosen records, then make everything from the published ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", nargs="*", type=Path, help="JSON files of records")
    parser.add_argument("--force", action="store_true", help="publish them whatever speaks against")
    arguments = parser.parse_args()
    with sentences():
        chosen = {file: target(file, force=arguments.force) for file in arguments.records}
        for file, place in chosen.items():
            write_json(place, without_place(read_json(file)))
            print(f"Published: {place}")
        make_all()
        for file in superseded(RESULTS / "records"):
            print(f"Shown nowhere, since there is a newer evaluation of its run: {file}; remove it")


def without_place(value: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose command does not say where on that machine results were written.

    Evaluations are returned as they are: their manifests know each other by their hashes.
    """
    if "manifest" not in value:
        return value
    manifest = value["manifest"]
    words = shlex.split(manifest["command"])
    kept = shlex.join(word for word in words if not word.startswith("paths.results="))
    return sealed(value | {"manifest": sealed(manifest | {"command": kept})})


def target(file: Path, *, force: bool) -> Path:
    """Return the place of a record among the published ones; UserError if it should not be there.

    If `force`, reasons against it are warnings; a damaged record is always refused.
    """
    place, reasons = examined(file, read_json(file))
    if reasons and not force:
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise UserError(f"{file} is not published (--force publishes it):{listed}")
    for reason in reasons:
        warn(f"{file}: {reason}")
    return place


def examined(file: Path, value: Any) -> tuple[Path, list[str]]:
    """Return the place of a record among the published ones, and what speaks against it."""
    if isinstance(value, dict) and "manifests" in value:
        record = EVALUATIONS.from_json(value, file)
        name = file.name
        if name == METRICS:  # that of a run: named as `report` names its copy
            name = f"{record.run.replace('/', '-')}-{file.parent.name}.json"
        return RESULTS / "records" / name, [*of_evaluation(record, value)]
    if isinstance(value, dict) and "ceilings" in value:
        benchmark = benchmark_records.BENCHMARKS.from_json(value, file)
        place = RESULTS / "records" / "benchmark" / f"{benchmark.name}.json"
        return place, [*of_benchmark(benchmark)]
    if isinstance(value, dict) and "product_tflops" in value:
        steps = STEPS.from_json(value, file)
        return RESULTS / "records" / "steps" / f"{steps.name}.json", [*of_steps(steps)]
    if isinstance(value, dict) and "outcomes" in value:
        return RESULTS / GPU_TESTS, [*of_gpu_tests(value)]
    raise UserError(
        f"{file} is no record; give a file of results/report/records, or metrics.json of an "
        f"evaluation or a benchmark, or the {GPU_TESTS} of make test-gpu"
    )


def of_evaluation(record: EvaluationRecord, value: dict[str, Any]) -> Iterator[str]:
    """Yield what speaks against publishing an evaluation."""
    for stage in ("train", "distill", "evaluate"):
        yield from of_code(stage, vars(getattr(record.manifests, stage).code))
    if shortened := record.training.trainer.shortened:
        yield f"trained on a part: {shortened}"
    name = row_of(value)
    if name is None:
        yield (
            "no row of conf/reproduce makes it: its recipe, its map or its images are others. Add "
            "a row, or reproduce one"
        )
        if record.trained_on.is_subset:
            yield "trained on a subset of the training split"
        if not record.test.whole:
            yield f"measured on {record.test.rows} of {record.test.of} test {record.samples}"
        return
    shortcomings = [
        [*shorter(record, tuple(overrides))] for overrides in load_row(name).evaluations
    ]
    yield from min(shortcomings, key=len)


def shorter(record: EvaluationRecord, overrides: tuple[str, ...]) -> Iterator[str]:
    """Yield in what the measurement is less than that of its row."""
    asked = composed_evaluation(overrides)
    limit = record.manifests.evaluate.config.get("max_test_rows")
    if limit not in (None, asked.max_test_rows):
        yield f"measured on {record.test.rows} test {record.samples}, by max_test_rows={limit}"
    if record.manifests.evaluate.hardware.gpu and not record.latency.cuda_graph:
        yield "timed without CUDA graphs, so with the time of the host"
    for words, mine, least in (
        ("samples with compared plans", record.fidelity_samples, asked.fidelity_samples),
        ("timed rounds", record.latency.rounds, asked.latency.rounds),
        ("samples per timed batch", record.latency.batch_size, asked.latency.batch_size),
    ):
        if mine < least:
            yield f"{mine} {words}, {least} in its row"


def of_benchmark(record: BenchmarkRecord) -> Iterator[str]:
    """Yield what speaks against publishing a benchmark."""
    yield from of_code("benchmark", vars(record.manifest.code))
    if record.triton_interpreted:
        yield "its kernels were interpreted, not compiled"
    if not record.manifest.hardware.gpu:
        yield "measured on a CPU; the published benchmarks are of a GPU"


def of_steps(record: StepRecord) -> Iterator[str]:
    """Yield what speaks against publishing a measurement of training steps."""
    yield from of_code("benchmark", vars(record.manifest.code))
    if not record.manifest.hardware.gpu:
        yield "measured on a CPU; the published steps are of a GPU"
    overrides = record.manifest.config["step"]["overrides"]
    if changed := [word for word in overrides if not is_experiment(word)]:
        yield f"the task was trained with other settings: step.overrides={changed}"


def is_experiment(word: str) -> bool:
    """Return whether a word of the command line takes the settings of an experiment of `conf/`."""
    key, _, name = word.partition("=")
    experiments = RESULTS.parent / "conf" / "train" / "experiment"
    return key.lstrip("+") == "experiment" and (experiments / f"{name}.yaml").is_file()


def of_gpu_tests(value: dict[str, Any]) -> Iterator[str]:
    """Yield what speaks against publishing a report of `make test-gpu`."""
    yield from of_code("test", value["code"])
    if not value["hardware"].get("gpu"):
        yield "there was no GPU"
    if not value.get("is_whole", True):  # reports before this field were written at the end alone
        yield "the tests were stopped before their end"
    yield from (
        f"{count} tests {outcome}"
        for outcome, count in value["outcomes"].items()
        if outcome not in ("passed", "skipped")
    )


def of_code(stage: str, code: dict[str, Any]) -> Iterator[str]:
    if not code.get("commit"):
        yield f"{stage}: its code has no commit"
    elif code.get("dirty"):
        yield f"{stage}: commit {code['commit'][:8]} had uncommitted changes"


def superseded(folder: Path) -> list[Path]:
    """Return the evaluations of a folder of which a newer one has the same run and settings."""
    files = sorted(folder.glob("*.json"))
    records = [EVALUATIONS.from_json(read_json(file), file) for file in files]
    shown = {id(record) for record in newest(records)}
    return [file for file, record in zip(files, records, strict=True) if id(record) not in shown]


def make_all() -> None:
    """Make tables, figures, page and documents from the published records."""
    groups = grouped(load_records(RESULTS / "records", strict=True))
    drawn = {
        group.slug: {name: image(figure) for name, figure in group_figures(group).items()}
        for group in groups
    }
    write_text(RESULTS / "tables.md", tables_markdown(groups))
    write_text(RESULTS / "tables.csv", tables_csv(groups))
    write_text(RESULTS / "index.html", html_page(groups, drawn))
    benchmarks = benchmark_records.load_records(RESULTS / "records" / "benchmark", strict=True)
    write_benchmarks(RESULTS, benchmarks)
    steps = load_steps(RESULTS / "records" / "steps", strict=True)
    if steps:
        write_steps(RESULTS, steps)
    page = Page(groups, benchmarks, steps, row_of_published)
    write_paper(page, DOCS / "paper.md", RESULTS, link="../results/")
    update_documents()
    wanted = shown_figures()
    figures = {f"{slug}-{name}.png": x for slug, each in drawn.items() for name, x in each.items()}
    if (first := summary(groups)) is not None:
        figures["summary.png"] = image(first)
    wanted |= {f"{slug}-accuracy_latency.png" for slug in drawn}
    for name in sorted(wanted & set(figures)):
        write_bytes(RESULTS / "figures" / name, figures[name])
    kept = {*wanted, *(f"benchmark_{record.name}.png" for record in benchmarks)}
    for file in sorted((RESULTS / "figures").glob("*.png")):
        if file.name not in kept:
            file.unlink()
            print(f"Removed: {file}, which belongs to no record")
    print(f"Made again: {RESULTS}, and the tables of {', '.join(d.name for d in DOCUMENTS)}")


def row_of_published(record: EvaluationRecord) -> str | None:
    """Return the name of the row that makes a published record, or None."""
    found = (value for value in published(RESULTS) if value.get("sha256") == record.sha256)
    return row_of(next(found))


def shown_figures() -> set[str]:
    """Return the names of the figures that README and docs show."""
    texts = map(read_text, DOCUMENTS)
    return {name for text in texts for name in re.findall(r"results/figures/([\w.-]+)", text)}


if __name__ == "__main__":
    main()
