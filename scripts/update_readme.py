"""Writes the results table of README.md from results/records; a test checks that it is current.

Usage: python scripts/update_readme.py
"""

from pathlib import Path

from asap_exp.evaluation.markdown import summary_lines
from asap_exp.evaluation.records import grouped, load_records
from asap_exp.files import write_text

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def with_table(readme: str, records: Path) -> str:
    """`readme` with the table of `records` between its markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    table = "\n".join(summary_lines(grouped(load_records(records))))
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    write_text(readme, with_table(readme.read_text(encoding="utf-8"), ROOT / "results/records"))
