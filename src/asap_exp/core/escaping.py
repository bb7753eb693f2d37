"""Words of a record as plain text in Markdown, in CSV, on a figure: nothing in them is a command.

The page escapes its own; a terminal is told not to read markup.
"""

import re
import textwrap
from html import escape

FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""What a spreadsheet takes for the beginning of a formula, in half and in full width."""

LONGEST_LINE = 400
"""Characters of one text on a figure; the layout has no room for more."""


def one_line(text: str) -> str:
    """Without line breaks and control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def markdown(text: str) -> str:
    """Text within a paragraph, a heading or a cell: no tag, no cell's end, no code, no link."""
    text = escape(one_line(text), quote=False)
    text = re.sub(r"[\\|`*~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return re.sub(r"\](?=[(\[:])", r"\\]", text)


def markdown_paragraph(text: str) -> str:
    """The same at the beginning of a line, where more means something: a heading, a list."""
    text = markdown(text.strip())
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", text)


def spreadsheet(value: object) -> object:
    """A cell of a CSV file: text is never a formula, wherever the file is opened."""
    if isinstance(value, str) and (value.lstrip()[:1] in tuple(FORMULA) or value[:1] in "\t\r\n"):
        return f"'{value}" if value else value
    return value


def on_figure(text: str, width: int | None = None) -> str:
    """Text that matplotlib shows as it is, in lines of at most `width` characters if one is given.

    A `$` begins no formula, and a label that begins with `_` is not left out of a legend.
    """
    text = one_line(text)
    text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
    lines = text if width is None else textwrap.fill(text, width)
    return (f" {lines}" if lines.startswith("_") else lines).replace("$", r"\$")
