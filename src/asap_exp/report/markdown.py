"""`tables.md`: an overview, then per group a short table and, folded, everything else."""

from collections.abc import Callable, Iterable, Sequence

from asap_exp.core.escaping import markdown, markdown_paragraph
from asap_exp.core.objectives import OBJECTIVES
from asap_exp.core.records.columns import Average, Column, shown
from asap_exp.core.records.row import COLUMN, COLUMNS
from asap_exp.core.records.words import MapSettings, map_settings, other_label, settings_of_label
from asap_exp.report import behaviour, layer_columns
from asap_exp.report.averages import AveragedRow, main_rows
from asap_exp.report.captions import caption, group_title, origins
from asap_exp.report.groups import Group
from asap_exp.report.headline import compiled_word, headline
from asap_exp.report.markdown_table import folded, table_lines
from asap_exp.report.names import LINEAR, NO_SLICES, ONE_LAYER, SOFTMAX, UNIFORM
from asap_exp.report.notes import attention_is_needless, remarks
from asap_exp.report.pareto import has_maps, points, quality

NOTICE = "<!-- Generated from records/ by `make report` or `make publish`: do not edit. -->"

EXPLANATION = (
    "Mean ± standard deviation over seeds, where there are several; an empty cell was not measured."
)
MEANINGS = (
    "Accuracy and perplexity are those of the test split. Agreement and KL (nats) compare the "
    "predictions with the teacher's. L1 row distance to the teacher's plans and column error are "
    "means over valid tokens, on the teacher's own activations (of a model trained by itself: on "
    "its own). A latency is the median [quartiles] of interleaved rounds in one process, of "
    "several seeds the mean ± standard deviation of the medians. Speed-ups are over the teacher "
    "in that process. Every row of every record is in tables.csv, unrounded."
)


def tables_markdown(groups: list[Group], more: Sequence[str] = ()) -> str:
    """Return `tables.md`; `more` are sections at its end."""
    parts = ["# Results", NOTICE, EXPLANATION, *map("\n".join, overview(groups))]
    if groups:
        parts.append("\n".join(folded("What the columns mean", [MEANINGS])))
    parts += [group_markdown(group) for group in groups]
    parts += more
    return "\n\n".join(parts) + "\n"


def by_objective(
    groups: list[Group],
    titles: Callable[[Column], list[str]],
    cells: Callable[[Group, Column], list[str]],
    *,
    text: int,
) -> list[list[str]]:
    """Return a table of classifiers and one of masked language models, each if there are any."""
    tables = []
    for objective in OBJECTIVES.values():
        column = COLUMN[objective.metric]
        mine = [group for group in groups if quality(group) is column]
        if mine:
            rows = [[group_title(group), *cells(group, column)] for group in mine]
            tables.append(table_lines([f"test {column.title}", *titles(column)], rows, text=text))
    return tables


def overview(groups: list[Group]) -> list[list[str]]:
    """Return a row per group: its map, the quality of teacher and map, the speed-ups."""
    return by_objective(
        groups,
        lambda _: [*SETTINGS[:3], "seeds", "teacher", compiled_word(groups), *SPEEDUPS],
        overview_cells,
        text=4,
    )


SPEEDUPS = {"layer speed-up": "layer_speedup", "model speed-up": "model_speedup"}


def overview_cells(group: Group, column: Column) -> list[str]:
    found = headline(group)
    speedups = [COLUMN[key].write(found.asap[key]) for key in SPEEDUPS.values()]
    qualities = [column.write(row[column.key]) for row in (found.teacher, found.asap)]
    artifact = group.first.artifact
    if (other := other_label(artifact)) is not None:
        settings = [other, "", ""]
    elif artifact.budget is not None:
        settings = ["by budget", "", ""]
    else:
        settings = values(map_settings(artifact))[:3]
    return [*settings, found.seeds, *qualities, *speedups]


def group_markdown(group: Group) -> str:
    parts = [
        [f"## {markdown(group_title(group))}"],
        [markdown_paragraph(caption(group.first))],
        method_lines(group, [r for r in main_rows(group) if not r.key.startswith(ONE_LAYER)]),
        *([remark] for remark in remarks(group)),
        folded("All columns", method_lines(group, main_rows(group), all_columns=True)),
    ]
    if has_maps(group):
        parts.append(folded("Every map and truncation, by latency", pareto_lines(group)))
    for of in (layer_columns, behaviour):
        if of.is_measured(group):
            lines = table_lines(*of.table(group))
            parts.append(folded(of.TITLE, [of.MEANING, "", *lines]))
    parts.append(folded("How it was trained and measured", table_lines(["", ""], origins(group))))
    return "\n\n".join(map("\n".join, parts))


def columns(group: Group, *, all_columns: bool) -> list[Column]:
    of_objective = shown(COLUMNS, group.first.objective)
    return [c for c in of_objective if (c.tables if all_columns else c.readme)]


def method_lines(
    group: Group, rows: Iterable[AveragedRow], *, all_columns: bool = False
) -> list[str]:
    """Return a table of methods with the few main columns, or all."""
    chosen = columns(group, all_columns=all_columns)
    write = Column.write if all_columns else short
    lines = [[method(row, group), *(write(c, row[c.key]) for c in chosen)] for row in rows]
    return table_lines(["method", *(column.title for column in chosen)], lines)


def short(column: Column, x: Average | None) -> str:
    """Format the mean and its deviation, without quartiles."""
    return column.write(None if x is None else Average(x.mean, x.std))


def method(row: AveragedRow, group: Group) -> str:
    """Return the name of the row's method, with its number of seeds unless it has all of them."""
    missing = row.n != len(group.records)
    return f"{row.name} (n = {row.n})" if missing else row.name


SETTINGS = ("slices", "features", "refine", "calibration", "samples")
"""Columns of the table of maps, fields of `MapSettings`."""


def setting_cells(row: AveragedRow) -> list[str]:
    """Describe the kind of method of a row, and how its map was made."""
    found = settings_of_label(row.label)
    if found is None:
        return [row.name, *[""] * len(SETTINGS)]
    return ["ASAP" if found.slices else NO_SLICES, *values(found)]


def values(settings: MapSettings) -> list[str]:
    return [getattr(settings, name) for name in SETTINGS]


def pareto_lines(group: Group) -> list[str]:
    """Return a table of the teacher's maps and truncations, and which rows dominate which."""
    chosen = [c for c in shown(COLUMNS, group.first.objective) if c.pareto]
    rows = points(group)
    numbers = {row.key: str(number) for number, row in enumerate(rows, start=1)}
    words = {True: "yes", False: "no", None: ""}
    lines = [
        [
            numbers[row.key],
            *setting_cells(row),
            str(row.n),
            *(column.write(row[column.key]) for column in chosen),
            numbers[row.dominated_by] if row.dominated_by else "",
            words[row.matched],
        ]
        for row in rows
    ]
    titles = ["row", "method", *SETTINGS, "n", *(column.title for column in chosen)]
    last = ["dominated by row", "matched by ASAP"]
    explanation = (
        "Mean ± standard deviation over models or, of a single one, over maps that differ in the "
        "seed of their calibration alone. A row is dominated by another that is no slower and no "
        "worse, and better in one of the two. A truncation is matched if some map is no slower "
        "and no worse."
    )
    return [explanation, "", *table_lines([*titles, *last], lines, text=len(SETTINGS) + 2)]


SUMMARY = {
    "teacher": "teacher",
    "ASAP": "asap",
    "T' = 1": "truncated_1",
    "T' = 2": "truncated_2",
    "T' = 3": "truncated_3",
    NO_SLICES: "control_query",
    UNIFORM: "control_uniform",
    SOFTMAX: "softmax_trained",
    LINEAR: "baseline_svm",
}
"""Column titles with the keys of their rows; the last is left out if no group has it."""


def summary_lines(groups: list[Group], keys: Sequence[str] = ()) -> list[str]:
    """Return one line per group with every layer compiled: the quality of each kind of method.

    Classifiers are judged by test accuracy; masked language models follow, if there are any, judged
    by perplexity. Groups on corrupted images are left out. With `keys`, only the columns of these
    rows are shown, for the groups that have at least two of them, without the map's settings.
    """
    whole = [g for g in groups if g.first.all_layers and g.first.corruption is None]
    if keys:
        whole = [g for g in whole if len({row.key for row in main_rows(g)} & {*keys}) > 1]
    settings = [] if keys else ["slices", "features"]
    tables = by_objective(
        whole,
        lambda column: [
            *settings,
            *(
                compiled_word(whole) if SUMMARY[title] == "asap" else title
                for title in summary_titles(whole, column, keys)
            ),
            "seeds",
        ],
        lambda group, column: [
            *([] if keys else map_cells(group)),
            *summary_cells(group, column, summary_titles(whole, column, keys)),
            str(len(group.records)),
        ],
        text=1 + len(settings),
    )
    return [line for number, table in enumerate(tables) for line in ([""] * bool(number)) + table]


def summary_titles(groups: list[Group], column: Column, keys: Sequence[str]) -> list[str]:
    mine = [group for group in groups if quality(group) is column]
    measured = {row.key for group in mine for row in main_rows(group)}
    *_, (last, last_key) = SUMMARY.items()
    chosen = [title for title, key in SUMMARY.items() if not keys or key in keys]
    return [title for title in chosen if title != last or last_key in measured]


def map_cells(group: Group) -> list[str]:
    """Return the slices and features of the group's map."""
    if (other := other_label(group.first.artifact)) is not None:
        return [other, ""]
    if group.first.artifact.budget is not None:
        return ["by budget", ""]
    settings = map_settings(group.first.artifact)
    return [settings.slices, settings.features]


def summary_cells(group: Group, column: Column, titles: Sequence[str]) -> list[str]:
    rows = {row.key: row[column.key] for row in main_rows(group)}
    cells = {title: column.write(rows.get(SUMMARY[title])) for title in titles}
    if UNIFORM in cells and attention_is_needless(group):
        cells[UNIFORM] += " (attention is not needed)"
    return list(cells.values())
