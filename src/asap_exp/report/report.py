"""Report: gather records, then make tables, figures and a page from the records alone."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from asap_exp.core.config import ReportConfig
from asap_exp.core.console import say, shown
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_bytes, write_text
from asap_exp.core.records.store import record_files
from asap_exp.core.runs import Run
from asap_exp.report.csv_table import tables_csv
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import grouped
from asap_exp.report.markdown import tables_markdown
from asap_exp.report.page import html_page
from asap_exp.report.records import gather, load_records
from asap_exp.report.summary_figure import summary


def report(config: ReportConfig, *, required: bool = True) -> Path | None:
    """Write records/, tables.md, tables.csv, figures/ and index.html below `config.out`.

    Returns the path of the page. Without any evaluation, raises UserError, or returns None if not
    `required`. Damaged records are left out with a warning, unless they belong to the given run.
    """
    out = Path(config.out)
    copied = gather(config.paths, config.task.name, config.run, out / "records")
    records = load_records(out / "records")
    left_out = len(record_files(out / "records")) - len(records)
    if config.run is not None:
        records = [record for record in records if record.run == Run(Path(config.run)).name]
    groups = grouped(records)
    if not groups and not required:
        return None
    if not groups:
        task = f" task={config.task.name}" if config.task.name else ""
        damaged = f" that is whole ({left_out} left out)" if left_out else ""
        raise UserError(
            f"no evaluation in {config.run or config.paths.runs} and no record in "
            f"{out / 'records'}{damaged}; make one with: python -m asap_exp.evaluate{task}"
        )
    figures = {
        group.slug: {name: png(figure) for name, figure in group_figures(group).items()}
        for group in groups
    }
    write_text(out / "tables.md", tables_markdown(groups))
    write_text(out / "tables.csv", tables_csv(groups))
    first = summary(groups)
    if first is not None:
        write_bytes(out / "figures" / "summary.png", png(first))
    for slug, drawn in figures.items():
        for name, data in drawn.items():
            write_bytes(out / "figures" / f"{slug}-{name}.png", data)
    page = out / "index.html"
    write_text(page, html_page(groups, figures))
    say(
        f"Records gathered from runs: {len(copied)}\nTables: {shown(out / 'tables.md')}\n"
        f"Figures: {shown(out / 'figures')}\nPage: {shown(page)}"
    )
    if left_out:
        say(f"Left out of {shown(out / 'records')}, named above: {left_out}")
    return page


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()
