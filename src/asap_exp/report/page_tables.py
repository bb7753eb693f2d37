"""Tables of the HTML page: the result of every group, and the methods of each."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asap_exp.core.objectives import OBJECTIVES
from asap_exp.core.records.columns import Average, Column
from asap_exp.core.records.row import COLUMN
from asap_exp.core.records.words import map_settings, other_label, teacher_word
from asap_exp.report.averages import AveragedRow, main_rows
from asap_exp.report.captions import group_title
from asap_exp.report.groups import Group
from asap_exp.report.headline import (
    Headline,
    compared_rows,
    compiled_word,
    headline,
    rival_words,
)
from asap_exp.report.markdown import columns, method
from asap_exp.report.names import ONE_LAYER
from asap_exp.report.pareto import compared, goodness, quality
from asap_exp.report.verdict import verdict

UP, DOWN = "ascending", "descending"


@dataclass(frozen=True)
class Heading:
    """Heading of a column.

    `first` is the order that a first click sorts in, `sorted` the one that the table is in.
    """

    title: str
    first: str = UP
    sorted: str = ""

    @property
    def unbroken(self) -> str:
        """The title, not broken at a hyphen."""
        return self.title.replace("-", "\N{NON-BREAKING HYPHEN}")


@dataclass(frozen=True)
class Cell:
    """Text of a cell, its deviation, words below it, and the number that it is sorted by."""

    text: str
    note: str = ""
    deviation: str = ""
    value: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """Row of a table; `kind` is a class of CSS, and `link` the id of a section."""

    cells: list[Cell]
    kind: str = ""
    link: str = ""


@dataclass(frozen=True)
class Body:
    """Rows that are sorted among themselves, below a title."""

    title: str
    lines: list[Line]


@dataclass(frozen=True)
class PageTable:
    headings: list[Heading]
    bodies: list[Body]


def result_table(groups: Sequence[Group]) -> PageTable:
    """Return a line per group: teacher, ASAP, its best rival and the speed-ups."""
    teachers = {teacher_word(group.first.artifact) for group in groups}
    headings = [
        Heading("task"),
        Heading(teachers.pop() if len(teachers) == 1 else "teacher", DOWN),
        Heading(compiled_word(groups), DOWN),
        Heading("best other, as fast", DOWN),
        Heading("layer speed-up", DOWN),
        Heading("model speed-up", DOWN, sorted=DOWN),
        Heading("seeds", DOWN),
    ]
    bodies = []
    for objective in OBJECTIVES.values():
        mine = [group for group in groups if group.first.trained_for is objective]
        lower = ", lower is better" if objective.lower_is_better else ""
        title = f"test {COLUMN[objective.metric].title}{lower}"
        found = sorted(map(headline, mine), key=speed_up, reverse=True)
        if found:
            bodies.append(Body(title, [result_line(each) for each in found]))
    return PageTable(headings, bodies)


def speed_up(found: Headline) -> float:
    return found.asap.mean("model_speedup") if found.asap["model_speedup"] else 0.0


def result_line(found: Headline) -> Line:
    group, column = found.group, quality(found.group)
    models = len(group.records)
    maps = f"{found.asap.n} maps" if found.asap.n != models else ""
    cells = [
        Cell(group_title(group), note=map_note(group)),
        cell(column, found.teacher),
        *rivals(column, found),
        *(cell(COLUMN[key], found.asap) for key in ("layer_speedup", "model_speedup")),
        Cell(str(models), maps, value=models),
    ]
    return Line(cells, kind="published" if group.published else "", link=group.slug)


def map_note(group: Group) -> str:
    """Describe the map of a group in a few words."""
    if (other := other_label(group.first.artifact)) is not None:
        return other
    if group.first.artifact.budget is not None:
        return "maps chosen within a budget"
    settings = map_settings(group.first.artifact)
    features = f"{settings.features} features" if settings.features else ""
    updates = "" if settings.refine == "0" else settings.updates
    return ", ".join(filter(None, [f"{settings.slices} slices", features, updates]))


def rivals(column: Column, found: Headline) -> list[Cell]:
    """Return the cells of ASAP and of its rival, the better one marked."""
    asap, rival = found.asap, found.rival
    if rival is None:
        return [cell(column, asap, best=True), Cell("", note="none")]
    ahead = lead(found)
    words = rival_words(rival).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    return [cell(column, asap, best=ahead >= 0), cell(column, rival, words, best=ahead <= 0)]


def lead(found: Headline) -> int:
    """Return 1 if ASAP is better than its rival in the digits that are shown, -1 if worse, or 0."""
    column = quality(found.group)
    if found.rival is None:
        return 1
    if cell(column, found.asap).text == cell(column, found.rival).text:
        return 0
    return 1 if goodness(found.asap, column) > goodness(found.rival, column) else -1


def in_words(groups: Sequence[Group]) -> str:
    """Say what came of a single group, or count those in which ASAP is better or worse."""
    found = [headline(group) for group in groups]
    if len(found) == 1 and found[0].asap["model_ms"] is not None:
        return " ".join(verdict(groups[0]))
    leads = [lead(each) for each in found if each.is_map]
    return (
        f"Of {len(leads)} rows, ASAP is the best of what is as fast in {leads.count(1)}, equal to "
        f"the best in {leads.count(0)} and behind in {leads.count(-1)}; differences of less than "
        "half a point may be noise."
    )


def cell(column: Column, row: AveragedRow, note: str = "", *, best: bool = False) -> Cell:
    found = row[column.key]
    if found is None:
        return Cell("", note)
    deviation = "" if found.std is None else f"± {column.number(found.std)}"
    return Cell(column.write(Average(found.mean)), note, deviation, found.mean, best)


def methods_table(group: Group) -> PageTable:
    """Return the methods with few columns: compared ones by speed, then those of other weights."""
    found = compared_rows(group)
    rows = [found[row.key] for row in main_rows(group) if not row.key.startswith(ONE_LAYER)]
    points = compared(rows, quality(group))
    timed = {point.key for point in points}
    others = [row for row in rows if row.key not in timed]
    chosen = columns(group, all_columns=False)
    judge = quality(group)
    top = max(points, key=lambda point: goodness(point, judge), default=None)
    best = None if top is None else cell(judge, top).text

    def line(row: AveragedRow, kind: str) -> Line:
        leads = kind != "" and cell(judge, row).text == best
        numbers = [cell(c, row, best=leads and c is judge) for c in chosen]
        return Line([named(row, group), *numbers], kind=f"{row.group} {kind}")

    bodies = [
        Body("", [line(p, "beaten" if p.dominated_by else "compared") for p in points]),
        Body("other models, for comparison", [line(row, "") for row in others]),
    ]
    return PageTable(headings_of(chosen), [body for body in bodies if body.lines])


def named(row: AveragedRow, group: Group) -> Cell:
    """Return the name of a method and, of a single model, over how many maps it is averaged."""
    if len(group.records) == 1 and row.n > 1:
        return Cell(row.name, note=f"mean of {row.n} maps")
    return Cell(method(row, group))


def all_columns_table(group: Group) -> PageTable:
    """Return every method with all columns, in the order of the record."""
    chosen = columns(group, all_columns=True)
    found = compared_rows(group)
    rows = [found[row.key] for row in main_rows(group)]
    lines = [
        Line([named(row, group), *(cell(c, row) for c in chosen)], kind=row.group) for row in rows
    ]
    return PageTable(headings_of(chosen), [Body("", lines)])


def text_table(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> PageTable:
    """Return a table of cells in words, in the order of the record."""
    return PageTable(
        [Heading(title) for title in titles],
        [Body("", [Line([text_cell(text) for text in line]) for line in lines])],
    )


def text_cell(text: str) -> Cell:
    """Return a cell that is sorted by the number that it begins with, if any."""
    number = re.match(r"-?[\d.]+(?= |$)", text)
    return Cell(text, value=float(number[0]) if number else None)


def headings_of(chosen: Iterable[Column]) -> list[Heading]:
    return [Heading("method"), *(Heading(c.title, DOWN if c.key in LARGER else UP) for c in chosen)]


LARGER = ("accuracy", "agreement", "layer_speedup", "model_speedup")
"""Columns whose larger numbers are better; a first click sorts them downwards."""
