"""What is committed under results/ and shown in the README is generated from the records."""

from pathlib import Path

import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.report import benchmark_records as benchmarks
from asap_exp.report.benchmark_markdown import benchmark_csv, benchmark_markdown
from asap_exp.report.csv_table import tables_csv
from asap_exp.report.documents import published, with_tables
from asap_exp.report.groups import Group, grouped
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.records import load_records
from tests.test_scripts import script

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "results" / "records"


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return grouped(load_records(RECORDS, strict=True))


@pytest.mark.slow
def test_tables_are_generated(groups: list[Group]) -> None:
    assert (ROOT / "results" / "tables.md").read_text() == tables_markdown(groups)
    assert (ROOT / "results" / "tables.csv").read_text() == tables_csv(groups)


@pytest.mark.slow
def test_tables_of_documents_are_generated() -> None:
    found = published(RECORDS)
    for document in script("update_readme").DOCUMENTS:
        text = document.read_text()
        assert with_tables(text, found) == text, document


@pytest.mark.slow
def test_table_of_a_document_that_names_nothing_is_refused() -> None:
    found = published(RECORDS)
    for marker in ("nothing", "headline nothing", "methods digits-plain-156709a8 nothing"):
        document = f"<!-- {marker}: begin -->\n<!-- {marker.split()[0]}: end -->"
        with pytest.raises(UserError, match="nothing"):
            with_tables(document, found)


@pytest.mark.slow
def test_every_record_names_its_code_and_its_machine(groups: list[Group]) -> None:
    for group in groups:
        for record in group.records:
            for stage in ("train", "distill", "evaluate"):
                manifest = getattr(record.manifests, stage)
                assert manifest.code.commit, (record.run, stage)
                assert not manifest.code.dirty, (record.run, stage)
                assert manifest.hardware.gpu or manifest.hardware.cpu


def test_every_figure_has_a_group(groups: list[Group]) -> None:
    folder = ROOT / "results" / "figures"
    figures = {file.name for file in folder.glob("*.png") if "benchmark_" not in file.name}
    kinds = ("accuracy_latency", "training", "plans", "fidelity")
    made = {f"{group.slug}-{kind}.png" for group in groups for kind in kinds} | {"summary.png"}
    wanted = {f"{group.slug}-accuracy_latency.png" for group in groups} | {"summary.png"}
    assert wanted <= figures <= made


def generated_benchmarks(results: Path) -> dict[str, str]:
    """What the benchmark records of a results folder give; nothing where there is no record."""
    records = benchmarks.load_records(results / "records" / "benchmark", strict=True)
    if not records:
        return {}
    return {
        "benchmark.md": benchmark_markdown(records),
        "benchmark.csv": benchmark_csv(records),
        **{f"figures/benchmark_{record.name}.png": "" for record in records},
    }


def check_benchmarks_are_generated(results: Path) -> None:
    generated = generated_benchmarks(results)
    there = {*results.glob("benchmark.*"), *results.glob("figures/benchmark_*")}
    assert {str(file.relative_to(results)) for file in there} == set(generated)
    for name, text in generated.items():
        assert not text or (results / name).read_text() == text, name


def test_benchmarks_are_generated() -> None:
    check_benchmarks_are_generated(ROOT / "results")


def test_every_benchmark_names_its_code_and_its_machine() -> None:
    for record in benchmarks.load_records(RECORDS / "benchmark", strict=True):
        assert record.manifest.code.commit, record.name
        assert not record.manifest.code.dirty, record.name
        assert record.manifest.hardware.gpu or record.manifest.hardware.cpu


def test_published_records_are_sealed() -> None:
    for file in RECORDS.rglob("*.json"):
        assert read_json(file)["sha256"], file.name
