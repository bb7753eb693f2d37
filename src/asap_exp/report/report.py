"""Report: gather records, then make tables, figures and a page from the records alone."""

from collections.abc import Sequence
from pathlib import Path

from asap_exp.core.config import ReportConfig
from asap_exp.core.console import say, shown
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_bytes, write_text
from asap_exp.core.records.store import record_files
from asap_exp.core.runs import named_run
from asap_exp.report.csv_table import tables_csv
from asap_exp.report.drawing import image
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group, grouped, in_order
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.page import html_page
from asap_exp.report.published import own_folder
from asap_exp.report.records import gather, load_records
from asap_exp.report.summary_figure import summary
from asap_exp.report.trainings import FOLDER as TRAININGS
from asap_exp.report.trainings import Comparison, compared
from asap_exp.report.trainings import gather as gather_trainings
from asap_exp.report.trainings import load_records as load_trainings
from asap_exp.report.trainings_figure import learning_curves
from asap_exp.report.trainings_table import markdown_of, trainings_csv


def report(config: ReportConfig, *, required: bool = True) -> Path | None:
    """Write records/, tables.md, tables.csv, figures/ and index.html below `config.folder`.

    Returns the path of the page. Without any evaluation or finished training, raises UserError, or
    returns None if not `required`. Damaged records are left out with a warning, unless they belong
    to the given run.
    """
    out = own_folder(config.folder)
    copied = gather(config.paths, config.task.name, config.run, out / "records")
    records = load_records(out / "records")
    left_out = len(record_files(out / "records")) - len(records)
    gather_trainings(config.paths, config.task.name, config.run, out / "records" / TRAININGS)
    trainings = load_trainings(out / "records" / TRAININGS)
    task, run = config.task.name, config.run and named_run(config.paths, config.run).name
    # The folder keeps what earlier reports gathered, of other tasks and runs too.
    records = [r for r in records if task in (None, r.task) and run in (None, r.run)]
    trainings = [r for r in trainings if task in (None, r.task) and run in (None, r.run)]
    found = compared(trainings, {record.run for record in records})
    groups = in_order([*grouped(records), *published_groups(config)])
    if not (groups or found) and not required:
        return None
    if not (groups or found):
        raise none_found(config, left_out)
    page = write_report(out, groups, config.figures, found)
    shown_trainings = sum(len(each.records) for kind in found for each in kind.trained)
    say(
        f"Evaluations gathered from runs: {len(copied)}; trainings without one: {shown_trainings}\n"
        f"Tables: {shown(out / 'tables.md')}\n"
        f"Figures: {shown(out / 'figures')}\nPage: {shown(page)}"
    )
    if left_out:
        say(f"Left out of {shown(out / 'records')}, named above: {left_out}")
    return page


def none_found(config: ReportConfig, left_out: int = 0) -> UserError:
    """Return the UserError of a report without anything; `left_out` records are damaged."""
    task = f"task={config.task.name or 'TASK'}"
    damaged = f" that is whole ({left_out} left out)" if left_out else ""
    return UserError(
        f"there is no finished training and no evaluation in {config.run or config.paths.runs}, "
        f"and no record in {config.folder / 'records'}{damaged}; begin with: python -m "
        f"asap_exp.train {task}"
    )


def published_groups(config: ReportConfig) -> list[Group]:
    """Return the groups of `config.published`; of the given task or of the given run's, if any."""
    if config.published is None:
        return []
    folder = Path(config.published) / "records"
    if not folder.is_dir():
        raise UserError(
            f"published={config.published} has no folder records; give a folder of published "
            "results, such as results in a clone of the repository"
        )
    task = config.task.name
    if config.run is not None:
        task = named_run(config.paths, config.run).config.task.name
    records = load_records(folder)
    return grouped((r for r in records if task in (None, r.task)), published=True)


def write_report(
    out: Path, groups: list[Group], form: str = "png", trainings: Sequence[Comparison] = ()
) -> Path:
    """Write tables, all figures (as files of this format) and the page; return the page."""
    pngs = {}
    for group in groups:
        drawn = group_figures(group)
        pngs[group.slug] = {name: image(figure) for name, figure in drawn.items()}
        for name, png in pngs[group.slug].items():
            data = png if form == "png" else image(drawn[name], form)
            write_bytes(out / "figures" / f"{group.slug}-{name}.{form}", data)
    curves = {}
    for each in trainings:
        if (figure := learning_curves(each)) is not None:
            curves[each.slug] = image(figure)
            write_bytes(out / "figures" / f"{each.slug}.{form}", image(figure, form))
    write_text(out / "tables.md", tables_markdown(groups, markdown_of(trainings)))
    write_text(out / "tables.csv", tables_csv(groups))
    write_text(out / "trainings.csv", trainings_csv(trainings))
    first = summary(groups)
    if first is not None:
        write_bytes(out / "figures" / f"summary.{form}", image(first, form))
    page = out / "index.html"
    write_text(page, html_page(groups, pngs, trainings, curves))
    return page
