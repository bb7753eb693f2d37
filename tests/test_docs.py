"""The pages of docs/: what they tell a user to type works, and their links lead somewhere."""

import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.documents import (
    PAGES,
    README,
    ROOT,
    anchor,
    blocks,
    check_command,
    check_link,
    commands,
    headings,
    links,
)
from tests.test_scripts import script

MOST_LINES = 300
COMMANDS = sorted({command for page in PAGES for command in commands(page)} - {*commands(README)})
SNIPPETS = {
    f"{page.stem}-{number}": code
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"), start=1)
    if code not in blocks(README, "python")
}
ANSWERS = {
    "What is the closure?": "method.md#the-closure",
    "Which kernel runs for n = 200?": "kernels.md#which-kernel-runs-for-200-tokens-in-bfloat16",
    "How do I add a task?": "extending.md#how-do-i-add-a-task",
    "What did ASAP cost on IMDb?": "results.md#what-did-asap-cost-on-imdb",
    "How is T counted?": "method.md#how-t-is-counted",
    "What is a control?": "method.md#what-is-a-control",
    "How do I resume?": "tracking.md#how-do-i-resume",
    "Where are the logs?": "tracking.md#where-are-the-logs",
    "How do I compile my own timm model?": "../README.md#compile-your-own-model",
    "What is not reproduced?": "reproduce.md#what-is-not-reproduced",
    "How do I cite it?": "../README.md#how-to-cite",
    "How do I run a sweep?": "tracking.md#how-do-i-run-a-sweep",
}
"""Each is a link of the README, the start page of the site: one click."""


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_a_page_is_one(command: str) -> None:
    check_command(command)


SLOW = (
    "attentions-1",
    "attentions-2",
    "attentions-3",
    "own_data-1",
    "own_model-1",
    "own_model-3",
    "own_model-4",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SNIPPETS],
)
def test_snippet_of_a_page_runs_as_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """And prints what the page says next, if it says so."""
    if "from transformers" in SNIPPETS[name]:
        pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf`)")
    monkeypatch.chdir(tmp_path)
    exec(SNIPPETS[name], {})
    page = (ROOT / "docs" / f"{name.split('-')[0]}.md").read_text()
    after = page.split(f"```python\n{SNIPPETS[name]}```\n\n")[1]
    printed = capsys.readouterr().out
    if printed or after.startswith("```text\n"):
        assert after.startswith(f"```text\n{printed}```")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links(page):
        check_link(page, link)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_in_the_navigation_and_no_longer_than_can_be_read(page: Path) -> None:
    assert f"docs/{page.name}" in (ROOT / "mkdocs.yml").read_text()
    assert len(page.read_text().splitlines()) <= MOST_LINES
    anchors = [anchor(heading) for heading in headings(page)]
    assert len(set(anchors)) == len(anchors), "two headings would have the same link"


@pytest.mark.parametrize("question", ANSWERS)
def test_question_of_a_newcomer_is_one_click_away(question: str) -> None:
    answer = ANSWERS[question]
    check_link(ROOT / "docs" / "index.md", answer)
    heading = answer.removeprefix("../README.md#")
    assert f"docs/{answer}" in links(README) or heading in map(anchor, headings(README))


@pytest.mark.slow
def test_every_public_name_has_a_docstring() -> None:
    assert not script("build_docs").undocumented()


def test_formulas_become_mathml() -> None:
    mathml = script("docs_math").mathml
    inline = mathml(r'a <span class="arithmatex">\(x_1 &lt; y\)</span> b')
    assert re.fullmatch(r'a <math [^>]*display="inline">.*<mi>x</mi>.*&#x0003C;.*</math> b', inline)
    block = mathml('<div class="arithmatex">\\[\nx\n\\]</div>')
    assert re.fullmatch(r'<math [^>]*display="block">.*<mi>x</mi>.*</math>', block)


def test_aligned_formulas_are_rows_aligned_at_the_relation() -> None:
    formula = r"\begin{aligned} x &amp;= y + 1 \\ z &amp;= 2 \end{aligned}"
    found = script("docs_math").mathml(rf'<div class="arithmatex">\[{formula}\]</div>')
    rows = ElementTree.fromstring(found).findall(".//{*}mtr")
    assert ["".join(row.itertext()) for row in rows] == ["x=y+1", "z=2"]
    sides = [[cell.get("style", "").split(";")[0] for cell in row] for row in rows]
    assert sides == [["text-align: right", "text-align: left"]] * 2


@pytest.mark.parametrize(
    "formula",
    [
        r"\foo x",
        r"\left( x",
        r"\begin{alignedat}{1} x &amp; y \end{alignedat}",
        r"\begin{gathered} x \end{gathered}",
    ],
)
def test_formula_that_cannot_be_read_is_named(formula: str) -> None:
    with pytest.raises(ValueError, match=re.escape(unescape(formula))):
        script("docs_math").mathml(rf'<span class="arithmatex">\({formula}\)</span>')
