"""A Markdown extension: the formulas that Arithmatex marks become MathML when the site is built.

Browsers draw MathML by themselves, so that no page needs a script or the network for its formulas.
"""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

MARKED = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)


def mathml(text: str) -> str:
    """Replace each formula that Arithmatex's generic mode has marked in the HTML `text`."""

    def one(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(unescape(found[2]).strip(), display=display)

    return MARKED.sub(one, text)


class MathmlPostprocessor(Postprocessor):
    """Runs last, on a page's HTML."""

    def run(self, text: str) -> str:
        return mathml(text)


class MathmlExtension(Extension):
    """Registers the postprocessor behind Arithmatex's own."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.postprocessors.register(MathmlPostprocessor(md), "mathml", -1)


def makeExtension(**options: Any) -> MathmlExtension:
    """The name by which Markdown looks for an extension."""
    return MathmlExtension(**options)
