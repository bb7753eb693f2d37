"""Writes the tables of README.md from results/records; a test checks that they are current.

Usage: python scripts/update_readme.py
"""

import argparse
import os
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # figures are files; before anything imports matplotlib

from asap_exp.core.files import read_text, write_text
from asap_exp.core.mishaps import sentences
from asap_exp.report.benchmark_markdown import summary_lines as speed_lines
from asap_exp.report.benchmark_records import load_records as load_benchmarks
from asap_exp.report.groups import grouped
from asap_exp.report.markdown import summary_lines
from asap_exp.report.records import load_records

ROOT = Path(__file__).resolve().parents[1]


def with_tables(readme: str, records: Path) -> str:
    """`readme` with the tables of `records` between their markers; UserError for a damaged one."""
    evaluations = grouped(load_records(records, strict=True))
    readme = replaced(readme, "results", summary_lines(evaluations))
    benchmarks = load_benchmarks(records / "benchmark", strict=True)
    return replaced(readme, "speed", speed_lines(benchmarks))


def replaced(readme: str, name: str, lines: list[str]) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = readme.split(begin)
    _, after = rest.split(end)
    return "\n".join([f"{before}{begin}", *lines, f"{end}{after}"])


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    readme = ROOT / "README.md"
    with sentences():
        write_text(readme, with_tables(read_text(readme), ROOT / "results/records"))
