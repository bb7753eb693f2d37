"""`paper.md`: the paper's claims, its table of accuracies, and what could have been seen."""

from collections.abc import Mapping, Sequence

from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.report.captions import group_title, training_rows
from asap_exp.report.groups import Group
from asap_exp.report.markdown import NOTICE
from asap_exp.report.markdown_table import Markup, table_lines
from asap_exp.report.paper_accuracy import Cell, shorter_titles
from asap_exp.report.paper_claims import Claim
from asap_exp.report.paper_maps import map_words
from asap_exp.report.paper_page import Page
from asap_exp.report.paper_tasks import (
    ATTENTIONS,
    COARSE,
    SINKHORN,
    SOURCE,
    coarse_tokens,
    rows_of,
)
from asap_exp.report.pareto import quality
from asap_exp.report.power import LEVEL, POWER

CLAIMS = (
    "Each figure of ours is the worst case of what *measured* says, of the records in the last "
    "table of this page. *holds* and *fails* compare it with the paper's figure; *open* lacks a "
    "measurement, or one that tells the difference in question from chance. The paper's full text "
    "was not at hand: its figures are those of its abstract and of public summaries, and its 5.3 "
    "times is a ratio to its own implementation of the teacher."
)
ACCURACY = (
    "Test accuracy in per cent (WikiText-2: perplexity, less is better), mean ± standard deviation "
    "(number of seeds). ASAP is, of all records of a column's teachers, the map of the most "
    "thorough calibration (end to end, else learned slices, else ridge), whatever its accuracy; of "
    "a single teacher it is the mean over the seeds of its calibration, if several were measured. "
    "In bold is the best of a column where a paired test at 5 % tells it from each other method "
    "there: a t test over seeds where there are three or more, else McNemar's exact test over the "
    "test samples. Tests are not corrected for their number. A number in an empty cell's place is "
    "that of the reason below. † Published by others in other settings, and compared with no row "
    "of ours."
)
POWER_WORDS = (
    "How far the Sinkhorn teacher is from each method (positive: the teacher's number is larger), "
    f"and the smallest difference that the test finds at {100 * LEVEL:.0f} % with a chance of "
    f"{100 * POWER:.0f} %: what is smaller could not be told from chance. Samples say nothing of "
    "how far another seed would be. Older records do not say which samples were right; for them ≤ "
    "is what a test would find at the latest, by the share of predictions that agree. *none*: the "
    "methods differ on so few samples that no difference would be found."
)


def paper_markdown(page: Page, link: str = "") -> str:
    """Return the page."""
    parts = [
        "# The paper's claims and its table",
        NOTICE,
        f"As [CSV]({link}paper.csv) and [LaTeX]({link}paper.tex).",
        "## Claims",
        CLAIMS,
        "\n".join(claim_lines(page.claims)),
        "## Accuracy",
        ACCURACY,
        "\n".join(accuracy_lines(page)),
        shorter_words(page),
        coarse_words(page),
        untested_words(page),
        "\n".join(f"{number}. {reason}" for number, reason in enumerate(page.reasons(), start=1)),
        f"† From {SOURCE}.",
        "## What could have been seen",
        POWER_WORDS,
        "\n".join(power_lines(page)),
        "## Where the columns come from",
        "\n".join(origin_lines(page)),
        missing_words(page),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def claim_lines(found: Sequence[Claim]) -> list[str]:
    titles = ["claim", "paper", "ours", "difference", "verdict", "measured", "command"]
    rows = [
        [c.words, c.paper, c.ours, c.difference, c.verdict, c.measured, code(c.command)]
        for c in found
    ]
    return table_lines(titles, rows, text=len(titles))


def code(command: str) -> Markup:
    return Markup(f"`{command}`")


def accuracy_lines(page: Page) -> list[str]:
    numbers = {reason: number for number, reason in enumerate(page.reasons(), start=1)}
    rows = [
        [name, *(shown_cell(cell, numbers) for cell in row.values())]
        for name, row in page.table.items()
    ]
    return table_lines(["method", *page.titles()], rows)


def shorter_words(page: Page) -> str:
    """Say what the columns of shorter recipes are; empty if there are none."""
    shorter = shorter_titles(page.columns)
    if not shorter:
        return ""
    return (
        f"Of a shorter recipe, the same for every method of the column: {', '.join(shorter)}. They "
        "compare, at equal epochs, a rival that takes too long by the recipe of the task's first "
        "column. Numbers of these two columns are not to be compared."
    )


def coarse_words(page: Page) -> str:
    """Say of which tokens the coarse duals of each column are; empty if there are none."""
    found = {}
    for title, group in page.groups.items():
        rows = rows_of(group.first)
        labels = [row.label for name, row in rows.items() if name.startswith(f"{COARSE}, ")]
        compiled = [label for label in labels if not label.endswith(", trained alike")]
        if compiled:
            found[title] = " and ".join(dict.fromkeys(map(coarse_tokens, compiled)))
    if not found:
        return ""
    listed = "; ".join(f"{title} {tokens}" for title, tokens in found.items())
    return f"Coarse duals in the teacher's place take no fit, and are of these tokens: {listed}."


def untested_words(page: Page) -> str:
    """Say where nothing can be in bold; empty if there is no such column."""
    if not page.untested():
        return ""
    return (
        f"Nothing can be in bold for {', '.join(page.untested())}: fewer than three seeds, and no "
        "record of which samples were right."
    )


def shown_cell(cell: Cell, numbers: Mapping[str, int]) -> Markup:
    """Return a cell's text: bold if best, with a dagger if published, or the reason's number."""
    if cell.mean is None:
        return Markup(f"*({numbers[cell.reason]})*")
    text = f"**{cell.text}**" if cell.best else cell.text
    return Markup(f"{text} †" if cell.published else text)


def power_lines(page: Page) -> list[str]:
    titles = ["task", "Sinkhorn teacher minus", "difference", "p", "test", "finds from"]
    rows = []
    for title, name, test in page.comparisons():
        scale = quality(page.groups[title]).scale
        at_most = "≤ " if test.bound else ""
        nothing = "" if test.p is None else "none"
        finds = nothing if test.detectable is None else f"{at_most}{scale * test.detectable:.2f}"
        p = "" if test.p is None else f"{test.p:.2g}"
        difference = round(scale * test.difference, 2) + 0.0  # no -0.00
        rows.append([title, name, f"{difference:+.2f}", p, test.how, finds])
    return table_lines(titles, rows, text=2)


def origin_lines(page: Page) -> list[str]:
    """Return what each column was trained and tested on, its map, and the command that makes it."""
    rows, groups = [], page.groups
    for task in page.columns:
        command = code(page.making(task.title))
        if task.title not in groups:
            rows.append([task.title, *[""] * 5, command])
            continue
        group = groups[task.title]
        record, epochs = group.first, group.first.manifests.train.epochs
        test = f"{record.test.rows:,} {record.samples}"
        test += "" if record.test.whole else f", a SUBSET of {record.test.of:,}"
        records = f"{group_title(group)} ({group.slug})"
        origin = [records, data_words(record), test, str(epochs), shown_map(group), command]
        rows.append([task.title, *origin])
    titles = ["task", "records", "trained on", "tested on", "epochs", "map of ASAP", ""]
    return table_lines(titles, rows, text=7)


def shown_map(group: Group) -> str:
    """Describe the map in the cell of ASAP, and name its records if they are others."""
    others = "" if group.better is None else f" ({group.better.slug})"
    return f"{map_words(group)}{others}"


def data_words(record: EvaluationRecord) -> str:
    """Describe the training rows and where they came from."""
    source = record.trained_on.source
    return training_rows(record) + (f"; {source}" if source else "")


def missing_words(page: Page) -> str:
    """Say how the rows of rivals that are missing are made; empty if there are none."""
    missing = [
        attention
        for name, attention in ATTENTIONS.items()
        if name != SINKHORN and all(page.table[name][title].mean is None for title in page.groups)
    ]
    if not missing:
        return ""
    return (
        "Not trained for any task yet: "
        + ", ".join(missing)
        + ". A run with the recipe, model, data and seed of a teacher becomes a row when the "
        "teacher is evaluated again: "
        f"`python -m asap_exp.train experiment=catsdogs attention={missing[0]}`."
    )
