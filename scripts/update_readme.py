"""Writes the tables of README.md and docs/ from results/records; a test compares them.

Usage: python scripts/update_readme.py

A table stands between <!-- NAME ARGUMENTS: begin --> and <!-- NAME: end -->. NAME is one of

    results                 test accuracy of every group of records, a row each
    speed                   the operators alone, a row for each length and kind of input
    headline GROUP ...      a row for each group: is ASAP better than what is as fast?
    methods GROUP KEY ...   rows of one group: of tables.md (teacher, truncated_2, ...) or, where
                            every map was measured, of its second table (map_HASH)
    corruption GROUP ...    the same teacher and map on other test images
"""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # figures are files; before anything imports matplotlib

from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.files import read_text, write_text
from asap_exp.core.mishaps import sentences
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.report.averages import AveragedRow, main_rows
from asap_exp.report.benchmark_markdown import summary_lines as speed_lines
from asap_exp.report.benchmark_records import load_records as load_benchmarks
from asap_exp.report.groups import Group, grouped
from asap_exp.report.markdown import row_line, spread, summary_lines
from asap_exp.report.pareto import has_maps, points
from asap_exp.report.records import load_records

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/results.md")
TABLE = re.compile(r"<!-- (\w+)((?: [\w-]+)*): begin -->\n(.*?)<!-- \1: end -->", re.DOTALL)
AS_FAST = ("truncated", "relaxed", "control", "softmax_swapped")
"""How the keys begin of what one could take in the place of ASAP, with the same weights."""

percent, perplexity, nats, milliseconds = spread(100, 2), spread(1, 2), spread(1, 4), spread(1, 3)
times = spread(1, 2, "x")


@dataclass(frozen=True)
class Published:
    """What results/records holds: evaluations by the name of their group, and benchmarks."""

    groups: dict[str, Group]
    benchmarks: list[BenchmarkRecord]

    def group(self, slug: str) -> Group:
        check_choice("group of a table", slug, tuple(self.groups))
        return self.groups[slug]


def published(records: Path) -> Published:
    """UserError for a damaged record."""
    groups = grouped(load_records(records, strict=True))
    return Published(
        {group.slug: group for group in groups},
        load_benchmarks(records / "benchmark", strict=True),
    )


def with_tables(document: str, found: Published) -> str:
    """The text of `document` with every table made again."""

    def table(match: re.Match[str]) -> str:
        name, arguments = match[1], match[2].split()
        check_choice("table", name, tuple(TABLES))
        head = f"<!-- {' '.join([name, *arguments])}: begin -->"
        return "\n".join([head, *TABLES[name](found, arguments), f"<!-- {name}: end -->"])

    return TABLE.sub(table, document)


def table_lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return [row_line(list(titles)), f"| {' | '.join(rule)} |", *map(row_line, map(list, rows))]


def rows_of(group: Group) -> dict[str, AveragedRow]:
    """Every row of the group's tables, by key."""
    timed = points(group) if has_maps(group) else []
    return {row.key: row for row in [*timed, *main_rows(group)]}


def quality(row: AveragedRow, group: Group) -> str:
    """Accuracy in per cent; of a masked language model, perplexity."""
    return perplexity(row.perplexity) if group.first.is_masked else percent(row.accuracy)


def method_lines(found: Published, arguments: Sequence[str]) -> list[str]:
    group = found.group(arguments[0])
    rows = rows_of(group)
    for key in arguments[1:]:
        check_choice(f"row of {group.slug}", key, tuple(rows))
    measure = "perplexity" if group.first.is_masked else "accuracy %"
    return table_lines(
        ["method", measure, "KL (nats)", "layer ms", "speed of the model"],
        [
            [
                row.label,
                quality(row, group),
                nats(row.kl),
                milliseconds(row.layer_ms),
                times(row.model_speedup),
            ]
            for row in (rows[key] for key in arguments[1:])
        ],
    )


def headline_lines(found: Published, arguments: Sequence[str]) -> list[str]:
    return table_lines(
        ["test accuracy %", "teacher", "ASAP", "best other, as fast", "speed of the model"],
        [headline(found.group(slug)) for slug in arguments],
    )


def headline(group: Group) -> list[str]:
    rows = rows_of(group)
    asap = rows["asap"]
    assert asap.model_ms is not None, "an evaluation times its map"
    others = [
        row
        for row in rows.values()
        if row.label.startswith("control") or row.key.startswith(AS_FAST)
        if row.model_ms is not None and row.model_ms.mean <= asap.model_ms.mean
    ]
    masked = group.first.is_masked
    best = max(
        others,
        key=lambda row: -row.perplexity.mean if masked and row.perplexity else row.accuracy.mean,
    )
    return [
        short_title(group),
        quality(rows["teacher"], group),
        quality(asap, group),
        f"{quality(best, group)} ({best.label.partition(', ridge')[0]})",
        times(asap.model_speedup),
    ]


def short_title(group: Group) -> str:
    """The data set, its length, and whether it is a subset or another objective."""
    record = group.first
    n = record.training.tokens
    length = f"n ≤ {record.training.data.max_length}" if n is None else f"n = {n}"
    subset = " (subset)" if record.is_subset else ""
    perplexities = ", perplexity" if record.is_masked else ""
    norm = "" if n is None else f", {'with' if record.qk_norm else 'without'} qk_norm"
    return f"{record.data}{subset}, {length}{norm}{perplexities}"


CORRUPTION = {
    "teacher": "teacher",
    "ASAP, refined once": "asap",
    "T' = 5": "truncated_5",
    "T' = 10": "truncated_10",
}


def corruption_lines(found: Published, arguments: Sequence[str]) -> list[str]:
    lines = []
    for slug in arguments:
        group = found.group(slug)
        change = group.first.corruption
        if change is None:
            raise UserError(f"{slug} is no evaluation on corrupted images")
        rows = rows_of(group)
        name = f"{change.name}, severity {change.severity}"
        lines.append([name, *(quality(rows[key], group) for key in CORRUPTION.values())])
    return table_lines(["test accuracy %", *CORRUPTION], lines)


TABLES: dict[str, Callable[[Published, Sequence[str]], list[str]]] = {
    "results": lambda found, _: summary_lines(list(found.groups.values())),
    "speed": lambda found, _: speed_lines(found.benchmarks),
    "headline": headline_lines,
    "methods": method_lines,
    "corruption": corruption_lines,
}


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with sentences():
        found = published(ROOT / "results/records")
        for name in DOCUMENTS:
            write_text(ROOT / name, with_tables(read_text(ROOT / name), found))
