"""Tables of trainings without an evaluation: on the page, in Markdown and as CSV."""

from collections.abc import Iterable, Sequence

from asap_exp.core.console import duration
from asap_exp.core.escaping import markdown
from asap_exp.core.records.columns import Average
from asap_exp.report.csv_table import csv_text
from asap_exp.report.markdown_table import table_lines
from asap_exp.report.page_tables import DOWN, UP, Body, Cell, Heading, Line, PageTable
from asap_exp.report.trainings import Comparison, Trained

TITLE = "Trainings"
NOTE = (
    "Finished runs without an evaluation of their own. Accuracy and perplexity are those of the "
    "best epoch on the validation data; no number here is of the test split."
)


def page_table(found: Comparison) -> PageTable:
    """Return a line for the seeds of each recipe, the best first."""
    order = UP if found.objective.lower_is_better else DOWN
    headings = [
        Heading("attention"),
        Heading(f"validation {found.column.title}", order, sorted=order),
        Heading("last training loss"),
        Heading("epochs"),
        Heading("parameters"),
        Heading("training time"),
        Heading("seeds", DOWN),
    ]
    return PageTable(headings, [Body("", [line(each, found) for each in found.trained])])


def line(trained: Trained, found: Comparison) -> Line:
    """Return the page's row of a recipe."""
    first, column, quality = trained.first.manifest, found.column, trained.quality
    seconds = trained.mean(lambda record: record.manifest.train_seconds)
    loss = trained.mean(lambda record: record.last_loss)
    cells = [Cell(trained.attention, note=trained.settings)]
    if quality is None:
        cells.append(Cell(""))
    else:
        deviation = "" if quality.std is None else f"± {column.number(quality.std)}"
        text = column.write(Average(quality.mean))
        best = found.trained[0].quality
        leads = best is not None and text == column.write(Average(best.mean))
        cells.append(Cell(text, deviation=deviation, value=quality.mean, best=leads))
    cells.append(Cell("") if loss is None else Cell(f"{loss.mean:.3f}", value=loss.mean))
    cells.append(Cell(str(first.epochs), value=first.epochs))
    cells.append(Cell(f"{first.parameters:,}", value=first.parameters))
    cells.append(Cell("") if seconds is None else Cell(duration(seconds.mean), value=seconds.mean))
    cells.append(Cell(str(len(trained.records)), value=len(trained.records)))
    return Line(cells)


def markdown_of(found: Sequence[Comparison]) -> list[str]:
    """Return the section of tables.md: a table per data set."""
    if not found:
        return []
    parts = [f"## {TITLE}", NOTE]
    for each in found:
        table = page_table(each)
        rows = [
            [
                ": ".join(filter(None, [row.cells[0].text, row.cells[0].note])),
                *(" ".join(filter(None, [cell.text, cell.deviation])) for cell in row.cells[1:]),
            ]
            for row in table.bodies[0].lines
        ]
        titles = [heading.title for heading in table.headings]
        parts += [f"### {markdown(each.title)}", "\n".join(table_lines(titles, rows))]
    return parts


def trainings_csv(found: Iterable[Comparison]) -> str:
    """Return a row for every run, unrounded."""
    return csv_text(
        [
            {
                "run": record.run,
                "data": record.config["data"]["name"],
                "attention": trained.attention,
                "settings": trained.settings,
                "seed": record.manifest.seed,
                "train_subset": record.trained_on.is_subset,
                f"validation_{each.objective.metric}": record.quality,
                "last_training_loss": record.last_loss,
                "kept_epoch": record.manifest.kept_epoch,
                "epochs": record.manifest.epochs,
                "parameters": record.manifest.parameters,
                "train_seconds": record.manifest.train_seconds,
            }
            for each in found
            for trained in each.trained
            for record in trained.records
        ]
    )
