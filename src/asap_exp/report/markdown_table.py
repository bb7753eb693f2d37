"""Tables of Markdown files, the same for evaluations, benchmarks, README and docs.

pandas' `to_markdown` is not used: it escapes nothing and needs another package.
"""

from collections.abc import Iterable, Sequence

from asap_exp.core.escaping import markdown
from asap_exp.core.manifest import Manifest


def table_lines(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, text: int = 1
) -> list[str]:
    """Return a table whose first `text` columns are words, aligned left, and the others numbers."""
    rule = ["---"] * text + ["---:"] * (len(titles) - text)
    return [row_line(titles), row_line(rule), *map(row_line, rows)]


class Markup(str):
    """Text that is Markdown already, such as a link or a bold number, and is not escaped."""


def row_line(cells: Sequence[str]) -> str:
    """Return one row of a table, with the content of its cells escaped, except of `Markup`."""
    shown = (cell if isinstance(cell, Markup) else markdown(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"


def folded(summary: str, lines: Iterable[str]) -> list[str]:
    """Return lines that a reader can unfold, on code hosts and on the documentation site."""
    head = f'<details markdown="1"><summary>{markdown(summary)}</summary>'
    return [head, "", *lines, "", "</details>"]


def commit(manifest: Manifest) -> str:
    return f"{str(manifest.code.commit)[:8]}{'+dirty' if manifest.code.dirty else ''}"
