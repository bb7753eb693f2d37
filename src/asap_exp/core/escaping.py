"""Escaping of record texts for Markdown, CSV and figures, so that none is read as markup.

The HTML page escapes its own texts; terminals are told not to interpret markup.
"""

import re
import textwrap
from html import escape

FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""First characters that make a spreadsheet read a cell as a formula, in half and full width."""

LONGEST_LINE = 400
"""Characters of one text on a figure; the layout has no room for more."""


def one_line(text: str) -> str:
    """Replace line breaks and control characters by spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def markdown(text: str) -> str:
    """Escape text within a paragraph, heading or cell: no tag, cell end, code or link."""
    text = escape(one_line(text), quote=False)
    text = re.sub(r"[\\|`*~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return re.sub(r"\](?=[(\[:])", r"\\]", text)


def markdown_paragraph(text: str) -> str:
    """Escape text at the start of a line, where headings and lists must be prevented as well."""
    text = markdown(text.strip())
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", text)


def spreadsheet(value: object) -> object:
    """Quote a cell of a CSV file if any spreadsheet would read its text as a formula."""
    if isinstance(value, str) and (value.lstrip()[:1] in tuple(FORMULA) or value[:1] in "\t\r\n"):
        return f"'{value}" if value else value
    return value


def on_figure(text: str, width: int | None = None) -> str:
    """Escape text for matplotlib, wrapped to `width` characters if given.

    A `$` starts no formula, and a label that starts with `_` still appears in the legend.
    """
    text = one_line(text)
    text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
    lines = text if width is None else textwrap.fill(text, width)
    return (f" {lines}" if lines.startswith("_") else lines).replace("$", r"\$")
