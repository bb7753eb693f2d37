"""The HTML page: what it says, and how a real browser shows it at two widths, light and dark."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from asap_exp.report.drawing import image
from asap_exp.report.figures import group_figures
from asap_exp.report.groups import Group, grouped
from asap_exp.report.page import figure_caption, html_page, measured
from asap_exp.report.page_tables import in_words, methods_table, result_table
from asap_exp.report.verdict import verdict
from tests.records import published, typed, with_seed

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no browser: install Debian's chromium to test the page in one"
)
FIGURES = 5
"""The summary, and those of one group: drawing takes a second each."""
WIDE, NARROW = (1280, 900), (390, 844)


def some_groups() -> list[Group]:
    """A group of two seeds, one with all its maps, and a masked language model."""
    digits = published("digits-vit-sinkhorn-18c43027-s0")
    records = [digits, with_seed(digits, 7), published("imdb"), published("wikitext")]
    return grouped(map(typed, records))


def pngs(group: Group) -> dict[str, bytes]:
    return {name: image(figure) for name, figure in group_figures(group).items()}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    groups = some_groups()
    file = tmp_path_factory.mktemp("page") / "index.html"
    drawn = {g.slug: pngs(g) if g.first.task == "imdb" else {} for g in groups}
    file.write_text(html_page(groups, drawn))
    return file


@pytest.mark.slow
def test_page_needs_no_other_file_and_is_small(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r'\b(src|href)="(?!data:|#)|url\(|@import|https?:', html)
    assert html.count("data:image/webp;base64,") == FIGURES
    assert len(html) < 40_000 * (FIGURES + len(some_groups()))


@pytest.mark.slow
def test_result_comes_first_and_marks_the_better_of_asap_and_its_rival() -> None:
    groups = some_groups()
    table = result_table(groups)
    assert [body.title for body in table.bodies] == [
        "test accuracy %",
        "test perplexity, lower is better",
    ]
    titles = [heading.title for heading in table.headings]
    asap, other = titles.index("ASAP"), titles.index("best other, as fast")
    for body in table.bodies:
        lower = "lower" in body.title
        for line in body.lines:
            mine, rival = line.cells[asap], line.cells[other]
            better = mine.value <= rival.value if lower else mine.value >= rival.value
            assert mine.best == (better or mine.text == rival.text)
            assert line.link in {group.slug for group in groups}
    place = titles.index("model speed-up")
    speeds = [line.cells[place].value or 0.0 for line in table.bodies[0].lines]
    assert speeds == sorted(speeds, reverse=True)
    counts = [int(count) for count in re.findall(r"\d+", in_words(groups))]
    assert counts[0] == len(groups) == sum(counts[1:])
    assert in_words(groups[:1]) == " ".join(verdict(groups[0]))


def test_methods_are_in_order_of_speed_and_a_map_is_the_mean_over_its_seeds() -> None:
    (group,) = (group for group in some_groups() if group.first.task == "imdb")
    table = methods_table(group)
    rows = {line.cells[0].text: line for line in table.bodies[0].lines}
    assert rows["ASAP, all layers"].cells[0].note == "mean of 3 maps"
    assert rows["ASAP, all layers"].cells[1].deviation == "± 0.02"
    speeds = [line.cells[-1].value or 0.0 for line in table.bodies[0].lines]
    assert speeds == sorted(speeds, reverse=True)
    assert "tf-idf + linear SVM" in {line.cells[0].text for line in table.bodies[1].lines}


def test_caption_of_the_plans_states_the_column_error_of_their_head() -> None:
    record = published("digits-vit-sinkhorn-5088834e-s3")
    (group,) = grouped([typed(record)])
    words = figure_caption(group, "plans")
    head = (record["plans"]["layer"], record["plans"]["head"])
    (row,) = (row for row in record["fidelity"] if (row["layer"], row["head"]) == head)
    assert f"(column error {row['teacher_column_error']:.2g} in this head)" in words
    row["teacher_column_error"] = None
    (group,) = grouped([typed(record)])
    assert "as far as the teacher's updates reach; those" in figure_caption(group, "plans")


def test_machine_is_the_gpu_or_the_processor_by_its_name() -> None:
    names = {group.first.task: measured([group])["machine"] for group in some_groups()}
    assert names["digits"] == "AMD EPYC"
    assert names["imdb"] == "NVIDIA H200"


HOOK = "<script>parent.postMessage(JSON.stringify((%s)()), '*')</script>"
"""Runs a function at the end of the page and sends what it returns to the frame around it."""
FRAME = """
<body style="margin: 0"><pre id=found></pre>
<iframe src="asked.html" width="{}" height="{}" style="border: 0"></iframe>
<script>
addEventListener("message", (event) => document.querySelector("pre").textContent = event.data);
</script>
"""
"""A browser without a screen has no window of 390 pixels, but a frame may be as narrow."""


def ask(page: Path, script: str, size: tuple[int, int], *options: str) -> Any:
    """What a function of JavaScript returns in a copy of the page, shown in this size."""
    copy, frame = page.with_name("asked.html"), page.with_name("frame.html")
    copy.write_text(page.read_text().replace("</body>", f"{HOOK % script}</body>"))
    frame.write_text(FRAME.format(*size))
    profile = page.with_name("profile")
    assert BROWSER is not None
    try:
        done = subprocess.run(
            [
                BROWSER,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
                *("--no-first-run", f"--user-data-dir={profile}", "--virtual-time-budget=3000"),
                *("--window-size=1600,1000", *options, "--dump-dom", frame.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        shutil.rmtree(profile, ignore_errors=True)
    (answer,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    return json.loads(unescape(answer))


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
@pytest.mark.parametrize("unfolded", [False, True])
def test_page_fits_the_width(page: Path, size: tuple[int, int], unfolded: bool) -> None:
    """Nothing sticks out, not even of a table, also with every detail unfolded."""
    found = ask(
        page,
        """() => {
            for (const details of document.querySelectorAll("details.more"))
                details.open = UNFOLDED;
            const right = (element) => element.getBoundingClientRect().right;
            return {
                inner: innerWidth,
                scroll: document.documentElement.scrollWidth,
                cells: Math.max(...[...document.querySelectorAll("td, th, img")].map(right)),
                contents: document.querySelector("nav details").open,
                top: document.querySelector("table.result").getBoundingClientRect().top,
            };
        }""".replace("UNFOLDED", str(unfolded).lower()),
        size,
    )
    assert found["inner"] == size[0]
    assert found["scroll"] <= size[0]
    assert found["cells"] <= size[0]
    assert found["contents"] is (size is WIDE)
    assert found["top"] < size[1], "the result is on the first screen"


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
def test_every_column_sorts_and_its_heading_is_a_button(page: Path, size: tuple[int, int]) -> None:
    found = ask(
        page,
        """() => {
            const table = document.querySelector("table.methods");
            const first = table.tBodies[0];
            return [...table.tHead.rows[0].cells].map((heading, column) => {
                const button = heading.querySelector("button");
                button.focus();
                const states = [0, 1].map(() => {
                    button.click();
                    return {
                        order: heading.getAttribute("aria-sort"),
                        marked: table.querySelectorAll("[aria-sort]").length,
                        cells: [...first.rows].map((row) => row.cells[column].dataset.value
                            ?? row.cells[column].textContent.trim()),
                    };
                });
                return {title: heading.textContent, states,
                    focused: document.activeElement === button};
            });
        }""",
        size,
    )
    assert len(found) == 5
    for column in found:
        assert column["focused"]
        first, second = column["states"]
        assert {first["order"], second["order"]} == {"ascending", "descending"}
        assert first["marked"] == second["marked"] == 1
        if column["title"] != "method":
            for state in (first, second):
                numbers = [float(cell) for cell in state["cells"]]
                down = state["order"] == "descending"
                assert numbers == sorted(numbers, reverse=down), column["title"]
        starts_down = column["title"] in ("accuracy %", "model speed\N{NON-BREAKING HYPHEN}up")
        assert (first["order"] == "descending") == starts_down


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
def test_figures_open_large(page: Path, size: tuple[int, int]) -> None:
    found = ask(
        page,
        """() => [...document.querySelectorAll("figure")].map((figure) => {
            const dialog = document.querySelector("dialog"), image = figure.querySelector("img");
            figure.querySelector("button").click();
            const large = dialog.querySelector("img");
            const state = {
                small: image.getBoundingClientRect().width,
                large: large.getBoundingClientRect().width,
                dialog: dialog.getBoundingClientRect().right,
                same: large.src === image.src,
                open: dialog.open,
                natural: image.naturalWidth,
            };
            dialog.querySelector("form button").click();
            return {...state, closed: !dialog.open};
        })""",
        size,
    )
    assert len(found) == FIGURES
    for figure in found:
        assert figure["open"]
        assert figure["closed"]
        assert figure["same"]
        assert figure["natural"] >= 1100
        assert figure["large"] >= 880
        assert figure["large"] > figure["small"]
        assert figure["dialog"] <= size[0]


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_text_can_be_read_light_and_dark(page: Path, scheme: int) -> None:
    """By the contrast that WCAG asks of small text, 4.5."""
    found = ask(
        page,
        """() => {
            const channels = (text) => text.match(/[\\d.]+/g).map(Number);
            const ground = (element) => {
                for (; element; element = element.parentElement) {
                    const colour = channels(getComputedStyle(element).backgroundColor);
                    if (colour.length < 4 || colour[3] > 0) return colour;
                }
                return [255, 255, 255];
            };
            const light = (colour) => colour.slice(0, 3)
                .map((c) => c / 255)
                .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            const texts = document.querySelectorAll(
                "h1, p, td, td a, td small, td span, nav a, small, dt, dd, summary, figcaption");
            const ratios = [...texts].filter((e) => e.checkVisibility()).map((e) => {
                const [a, b] = [channels(getComputedStyle(e).color), ground(e)].map(light);
                return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName];
            });
            return {
                dark: light(channels(getComputedStyle(document.body).backgroundColor)) < 0.5,
                least: ratios.sort((x, y) => x[0] - y[0])[0], count: ratios.length,
            };
        }""",
        WIDE,
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    assert found["dark"] is (scheme == 0)
    assert found["count"] > 100
    assert found["least"][0] >= 4.5, found["least"]
