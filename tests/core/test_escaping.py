"""Record texts in Markdown, CSV and figures are shown literally, never interpreted."""

import matplotlib.pyplot as plt
import pytest

from asap_exp.core.escaping import markdown, markdown_paragraph, on_figure, spreadsheet


def test_markdown_has_no_tag_cell_code_link_or_line() -> None:
    found = markdown("<img src=x> a|b `c` \\| *d* ~e~ [f](g) ![h][i]\n| j | _k_ &amp;")
    assert found == (
        r"&lt;img src=x&gt; a\|b \`c\` \\\| \*d\* \~e\~ [f\](g) ![h\][i] \| j \| \_k\_ &amp;amp;"
    )


def test_ordinary_words_stay_as_they_are() -> None:
    words = "cifar100, qk_norm on; ASAP, T' = 3: 8 + 1 [0.1, 0.2] (n = 4), 3x, 50 %, ±"
    assert markdown(words) == words
    assert markdown_paragraph(words) == words
    assert spreadsheet(words) == words
    assert on_figure(words) == words


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("> quote", "&gt; quote"),
        ("===", r"\==="),
        ("    code", "code"),
        ("[x]: y", r"[x\]: y"),
    ],
)
def test_a_paragraph_stays_one(text: str, written: str) -> None:
    assert markdown_paragraph(text) == written


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\uff1d"])
def test_a_cell_of_a_spreadsheet_is_no_formula(begin: str) -> None:
    assert spreadsheet(f"{begin}cmd()") == f"'{begin}cmd()"


@pytest.mark.parametrize("value", [-1.5, 0, None, True, ""])
def test_what_is_no_text_is_left_alone(value: object) -> None:
    assert spreadsheet(value) is value


@pytest.mark.parametrize("text", ["$x$", "a $\\frac{", "$$$", "\\$", "\\$x$", "100 $", "a\nb $c"])
def test_a_dollar_on_a_figure_is_a_dollar(text: str) -> None:
    figure = plt.figure()
    shown = figure.text(0, 0, on_figure(text))
    figure.draw_without_rendering()
    words, is_formula = shown._preprocess_math(shown.get_text())
    assert (words, is_formula) == (text.replace("\n", " "), False)
    plt.close(figure)


def test_a_label_is_in_the_legend_and_of_bounded_length() -> None:
    assert not on_figure("_x").startswith("_")
    assert len(on_figure("x" * 10**5)) < 500
    assert on_figure("a b $c", 3) == "a b\n\\$c"
