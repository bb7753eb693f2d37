"""`paper.csv` and `paper.tex`: the tables of the paper's page for spreadsheets and for LaTeX."""

from collections.abc import Iterable, Sequence
from typing import Any

from asap_exp.report.csv_table import csv_text
from asap_exp.report.paper_accuracy import Cell
from asap_exp.report.paper_page import Page
from asap_exp.report.paper_tasks import SINKHORN


def rounded(value: float | None) -> float | None:
    """Return six digits of a statistic; further ones differ between versions of SciPy."""
    return None if value is None else float(f"{value:.6g}")


def paper_csv(page: Page) -> str:
    """Return a row per cell of the accuracy table, per claim and per comparison."""
    kinds = ("kind", "task", "method", "mean", "std", "seeds", "text", "remark", "p", "finds")
    rows: list[dict[str, Any]] = [
        dict.fromkeys(kinds)
        | {
            "kind": "published" if cell.published else "accuracy",
            "task": title,
            "method": name,
            "mean": cell.mean,
            "std": cell.std,
            "seeds": cell.seeds or None,
            "text": cell.text,
            "remark": cell.reason or ("best" if cell.best else ""),
        }
        for name, row in page.table.items()
        for title, cell in row.items()
    ]
    rows += [
        dict.fromkeys(kinds)
        | {
            "kind": "comparison",
            "task": title,
            "method": f"{SINKHORN} minus {name}",
            "mean": test.difference,
            "remark": test.how,
            "p": rounded(test.p),
            "finds": rounded(test.detectable),
        }
        for title, name, test in page.comparisons()
    ]
    rows += [
        dict.fromkeys(kinds)
        | {
            "kind": "claim",
            "method": claim.words,
            "text": f"paper {claim.paper or 'none'}; ours {claim.ours or 'none'}",
            "remark": f"{claim.verdict}: {claim.measured}",
        }
        for claim in page.claims
    ]
    return csv_text(rows)


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "<": r"$<$",
    ">": r"$>$",
}


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def paper_latex(page: Page) -> str:
    """Return the accuracy table and the table of claims, for LaTeX with booktabs."""
    accuracy = [
        [latex(name), *(latex_cell(cell) for cell in row.values())]
        for name, row in page.table.items()
    ]
    told = [
        [latex(x) for x in (c.words, c.paper, c.ours, c.difference, c.verdict)] for c in page.claims
    ]
    return "\n".join(
        [
            "% Generated from records by `make report` or `make publish`: do not edit.",
            "% Needs \\usepackage{booktabs}. Daggers: published by others in other settings.",
            *tabular("l" + "r" * len(page.columns), ["method", *page.titles()], accuracy),
            "",
            *tabular("lllll", ["claim", "paper", "ours", "difference", "verdict"], told),
            "",
        ]
    )


def latex_cell(cell: Cell) -> str:
    text = latex(cell.text) or "--"
    text = rf"\textbf{{{text}}}" if cell.best else text
    return rf"{text}$^\dagger$" if cell.published else text


def tabular(columns: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf"{' & '.join(map(latex, titles))} \\",
        r"\midrule",
        *(rf"{' & '.join(row)} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
