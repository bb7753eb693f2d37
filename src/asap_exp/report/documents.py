"""Tables between markers in README and docs, made from the published records.

A table stands between `<!-- NAME ARGUMENTS: begin -->` and `<!-- NAME: end -->`. NAME is one of

    headline GROUP ...      a row per group: teacher, ASAP, its best rival, the speed-up
    methods GROUP KEY ...   rows of one group: of its table (teacher, truncated_2, ...) or, if
                            every map was measured, of the table of all maps (map_HASH)
    corruption GROUP ...    the same teacher and map on other test images, a row per group
    results [KEY ...]       the quality of every group, a row each; only these methods, if any
    speed                   the operators alone, a row per length and kind of input
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.files import read_text, write_text
from asap_exp.core.objectives import CLASSIFICATION
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.row import COLUMN
from asap_exp.core.records.words import settings_of_label
from asap_exp.report.averages import AveragedRow, main_rows
from asap_exp.report.benchmark_markdown import summary_lines as speed_lines
from asap_exp.report.benchmark_records import load_records as load_benchmarks
from asap_exp.report.captions import group_title
from asap_exp.report.groups import Group, grouped
from asap_exp.report.headline import compiled_word, headline, rival_words
from asap_exp.report.markdown import (
    SETTINGS,
    SUMMARY,
    columns,
    method_lines,
    setting_cells,
    short,
    summary_lines,
)
from asap_exp.report.markdown_table import table_lines
from asap_exp.report.pareto import has_maps, points, quality
from asap_exp.report.records import load_records

TABLE = re.compile(r"<!-- (\w+)((?: [\w-]+)*): begin -->\n(.*?)<!-- \1: end -->", re.DOTALL)


@dataclass(frozen=True)
class Published:
    """Contents of `records/`: groups of evaluations by name, and benchmarks."""

    groups: dict[str, Group]
    benchmarks: list[BenchmarkRecord]

    def group(self, slug: str) -> Group:
        check_choice("group of a table", slug, tuple(self.groups))
        return self.groups[slug]


def published(records: Path) -> Published:
    """Read the published records; UserError if one is damaged."""
    groups = grouped(load_records(records, strict=True))
    return Published(
        {group.slug: group for group in groups},
        load_benchmarks(records / "benchmark", strict=True),
    )


def update(file: Path, found: Published) -> None:
    """Regenerate every table of a file."""
    write_text(file, with_tables(read_text(file), found))


def with_tables(document: str, found: Published) -> str:
    """Return `document` with every table regenerated; UserError for an unknown marker."""

    def table(match: re.Match[str]) -> str:
        name, arguments = match[1], match[2].split()
        check_choice("table", name, tuple(TABLES))
        head = f"<!-- {' '.join([name, *arguments])}: begin -->"
        return "\n".join([head, *TABLES[name](found, arguments), f"<!-- {name}: end -->"])

    return TABLE.sub(table, document)


def rows_of(group: Group) -> dict[str, AveragedRow]:
    """Return every row of the group's tables, by key."""
    timed = points(group) if has_maps(group) else []
    return {row.key: row for row in [*timed, *main_rows(group)]}


def methods_table(found: Published, arguments: Sequence[str]) -> list[str]:
    """Return a table of some methods; if one is a map, its settings have columns."""
    group = found.group(arguments[0])
    rows = rows_of(group)
    for key in arguments[1:]:
        check_choice(f"row of {group.slug}", key, tuple(rows))
    chosen = [rows[key] for key in arguments[1:]]
    if not any(settings_of_label(row.label) for row in chosen):
        return method_lines(group, chosen)
    shown = columns(group, all_columns=False)
    titles = ["method", *SETTINGS[:-1]]
    cells = [setting_cells(row)[:-1] for row in chosen]
    # Settings that all maps of the table share are stated in the text around it.
    told = [place for place, title in enumerate(titles) if place == 0 or differs(cells, place)]
    lines = [
        [*(cell[place] for place in told), *(short(column, row[column.key]) for column in shown)]
        for cell, row in zip(cells, chosen, strict=True)
    ]
    headings = [*(titles[place] for place in told), *(column.title for column in shown)]
    return table_lines(headings, lines, text=len(told))


def differs(cells: Sequence[Sequence[str]], place: int) -> bool:
    return len({cell[place] for cell in cells} - {""}) > 1


def headline_table(found: Published, arguments: Sequence[str]) -> list[str]:
    groups = [found.group(slug) for slug in arguments]
    titles = [
        "test accuracy %",
        "Sinkhorn teacher",
        compiled_word(groups),
        "best other, as fast",
        "model speed-up",
    ]
    return table_lines(titles, [headline_cells(group) for group in groups])


def headline_cells(group: Group) -> list[str]:
    found, column = headline(group), quality(group)
    metric = group.first.trained_for.metric
    other = "" if metric == CLASSIFICATION.metric else f", {metric}"
    rival = found.rival
    return [
        f"{group_title(group)}{other}; {found.title_words}",
        column.write(found.teacher[column.key]),
        column.write(found.asap[column.key]),
        "" if rival is None else f"{column.write(rival[column.key])} ({rival_words(rival)})",
        COLUMN["model_speedup"].write(found.asap["model_speedup"]),
    ]


CORRUPTION = {
    "teacher": "teacher",
    "ASAP": "asap",
    "T' = 5": "truncated_5",
    "T' = 10": "truncated_10",
}


def corruption_table(found: Published, arguments: Sequence[str]) -> list[str]:
    lines = []
    for slug in arguments:
        group = found.group(slug)
        change, column = group.first.corruption, quality(group)
        if change is None:
            raise UserError(f"{slug} is no evaluation on corrupted images")
        rows = rows_of(group)
        cells = [column.write(rows[key][column.key]) for key in CORRUPTION.values()]
        lines.append([f"{change.name}, severity {change.severity}", *cells])
    return table_lines(["test accuracy %", *CORRUPTION], lines)


def results_table(found: Published, arguments: Sequence[str]) -> list[str]:
    for key in arguments:
        check_choice("method", key, tuple(SUMMARY.values()))
    return summary_lines(list(found.groups.values()), arguments)


TABLES: dict[str, Callable[[Published, Sequence[str]], list[str]]] = {
    "headline": headline_table,
    "methods": methods_table,
    "corruption": corruption_table,
    "results": results_table,
    "speed": lambda found, _: speed_lines(found.benchmarks),
}
