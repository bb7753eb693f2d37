"""Markdown extension that converts formulas marked by Arithmatex to MathML.

Browsers render MathML themselves, so that no page needs a script or the network for its formulas.
"""

import re
from html import unescape
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

MARKED = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)

COLUMN = re.compile(r'columnalign="(left|right)"')
CELLS = {
    "left": "text-align: left; padding: 2pt 1pt",
    "right": "text-align: right; padding: 2pt 1pt 2pt 2em",
}
"""Styles of cells: browsers know MathML Core, which leaves alignment and spacing to CSS."""


def mathml(text: str) -> str:
    """Replace each formula that Arithmatex's generic mode has marked in the HTML `text`."""
    return MARKED.sub(lambda found: converted(found[2], found[1] == "div"), text)


def converted(formula: str, block: bool) -> str:
    """Return the MathML of a formula; raise ValueError if it cannot be read."""
    formula = unescape(formula).strip()
    known = formula.replace("{aligned}", "{align*}")  # latex2mathml lays out the latter alone
    try:
        result = convert(known, display="block" if block else "inline")
        ElementTree.fromstring(result)
    except Exception as error:  # of many types, most without a message
        raise ValueError(f"the formula {formula} cannot be read: {error!r}") from error
    if (begun := re.search(r"\\begin{(.+?)}", formula)) and "<mtable" not in result:
        raise ValueError(f"the formula {formula} contains {begun[1]}, whose lines would be one")
    if unknown := re.search(r">(\\\w+)<", result):
        raise ValueError(f"the formula {formula} contains {unknown[1]}, which is unknown")
    return COLUMN.sub(lambda found: f'style="{CELLS[found[1]]}"', result)


class MathmlPostprocessor(Postprocessor):
    """Postprocessor that runs last, on a page's HTML."""

    def run(self, text: str) -> str:
        return mathml(text)


class MathmlExtension(Extension):
    """Extension that registers the postprocessor after Arithmatex's own."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.postprocessors.register(MathmlPostprocessor(md), "mathml", -1)


def makeExtension(**options: Any) -> MathmlExtension:
    """Return the extension; Markdown looks it up by this name."""
    return MathmlExtension(**options)
