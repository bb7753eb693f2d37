"""The paper's page from records: Markdown, with CSV and LaTeX beside it."""

from pathlib import Path

from asap_exp.core.config import ReportConfig
from asap_exp.core.console import say, shown
from asap_exp.core.files import write_text
from asap_exp.report.benchmark_records import load_records as load_benchmarks
from asap_exp.report.groups import grouped
from asap_exp.report.paper_files import paper_csv, paper_latex
from asap_exp.report.paper_markdown import paper_markdown
from asap_exp.report.paper_page import Page
from asap_exp.report.published import own_folder
from asap_exp.report.records import load_records
from asap_exp.report.report import published_groups
from asap_exp.report.step_records import load_records as load_steps


def report_paper(config: ReportConfig) -> None:
    """Write paper.md, paper.csv and paper.tex below `config.folder`, from its records."""
    out = own_folder(config.folder)
    folder = out / "records"
    page = Page(
        [*grouped(load_records(folder)), *published_groups(config)],
        load_benchmarks(folder / "benchmark"),
        load_steps(folder / "steps"),
    )
    write_paper(page, out / "paper.md", out)
    say(f"Claims and accuracies of the paper: {shown(out / 'paper.md')}")


def write_paper(page: Page, markdown: Path, tables: Path, *, link: str = "") -> None:
    """Write the page, and its tables as CSV and LaTeX into a folder that `link` leads to."""
    write_text(markdown, paper_markdown(page, link))
    write_text(tables / "paper.csv", paper_csv(page))
    write_text(tables / "paper.tex", paper_latex(page))
