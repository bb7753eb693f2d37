"""The paper's page: claims and accuracies from records, bold where a test says so."""

import csv
import io
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asap_exp.core.errors import UserError
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.right import RightSamples, labels_hash, packed_samples
from asap_exp.report.__main__ import run as run_report_stage
from asap_exp.report.benchmark_records import load_records as load_benchmarks
from asap_exp.report.groups import Group, grouped
from asap_exp.report.names import ESPFORMER, SOFTMAX
from asap_exp.report.paper_accuracy import accuracy_table, best_of
from asap_exp.report.paper_claims import claims, operator_speed, speed_of, training_cost
from asap_exp.report.paper_columns import chosen_groups
from asap_exp.report.paper_comparison import compare, paired_samples
from asap_exp.report.paper_files import latex, paper_csv, paper_latex
from asap_exp.report.paper_markdown import paper_markdown
from asap_exp.report.paper_page import Page
from asap_exp.report.paper_tasks import (
    ASAP,
    LOTFORMER,
    METHODS,
    SINKHORN,
    TASKS,
    method_of,
    rows_of,
)
from asap_exp.report.power import detectable_by_samples
from asap_exp.report.records import load_records
from tests.composed import composed
from tests.conftest import Pipeline
from tests.records import PUBLISHED, published, typed, with_seed
from tests.stages import ReportConfig
from tests.test_scripts import script

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 10_000
SIZES = {"cifar-vit-sinkhorn-c88251a1-s0-3bc10e20": "16 tokens, grid", "imdb": "64 tokens"}
QKNORM = "cifar-vit-sinkhorn-c88251a1-s0-3bc10e20"
"""CIFAR-100 with the norm: one seed, older than stored samples."""
PLAIN = "cifar-vit-sinkhorn-f9c05404-s0-e7c8e40c"
"""Without the norm."""


def page() -> Page:
    groups = grouped(load_records(PUBLISHED, strict=True))
    return Page(groups, load_benchmarks(PUBLISHED / "benchmark", strict=True), [])


def kept(value: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    copied = deepcopy(dict(value))
    copied["rows"] = [row for row in copied["rows"] if row["key"] in keys]
    return copied


def with_right(value: dict[str, Any], right: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """As if its rows had these samples right."""
    copied = kept(value, tuple(right))
    ordered = {row["key"]: right[row["key"]] for row in copied["rows"]}
    for row in copied["rows"]:
        row["accuracy"] = float(right[row["key"]].mean())
    copied["right"] = packed_samples(ordered, labels_hash(np.zeros(SAMPLES)))
    return copied


def first_right(count: int, wrong: int = 0) -> np.ndarray:
    """So many right samples from the first on, of which the first `wrong` are not."""
    numbers = np.arange(SAMPLES)
    return (numbers < count) & (numbers >= wrong)


def cifar(right: Mapping[str, np.ndarray]) -> Group:
    (group,) = grouped([typed(with_right(published(QKNORM), right))])
    return group


def with_rival(value: dict[str, Any], key: str, label: str) -> dict[str, Any]:
    """With a further model of the same recipe, measured like softmax."""
    copied = deepcopy(value)
    softmax = next(row for row in copied["rows"] if row["key"] == "softmax_trained")
    copied["rows"].append({**softmax, "key": key, "label": label, "group": "rival"})
    copied.setdefault("rival_runs", {})[key] = "cifar/vit-lotformer/0-s0"
    manifests = copied["manifests"]
    manifests.setdefault("rivals", {})[key] = manifests["softmax"]
    return copied


def with_espformer(value: dict[str, Any]) -> dict[str, Any]:
    copied = deepcopy(value)
    softmax = next(row for row in copied["rows"] if row["key"] == "softmax_trained")
    mine = {"key": "espformer_trained", "label": "ESPFormer, trained alike", "group": "espformer"}
    copied["rows"].append({**softmax, **mine})
    copied["espformer_run"] = "cifar/vit-espformer/0-s0"
    copied["manifests"]["espformer"] = copied["manifests"]["softmax"]
    return copied


def after(epochs: int, value: dict[str, Any]) -> dict[str, Any]:
    """As if trained for so many epochs."""
    copied = deepcopy(value) | {"run": f"cifar/vit-sinkhorn/{epochs:08d}-s0"}
    train = copied["manifests"]["train"]
    train["epochs"] = train["config"]["recipe"]["epochs"] = epochs
    return copied


def page_of(*values: dict[str, Any]) -> Page:
    return Page(grouped(map(typed, values)), [], [])


# What is published


def test_the_published_page_is_what_the_records_say() -> None:
    groups = grouped(load_records(PUBLISHED, strict=True))
    times = load_benchmarks(PUBLISHED / "benchmark", strict=True)
    found = Page(groups, times, [], script("publish").row_of_published)
    assert (ROOT / "docs" / "paper.md").read_text() == paper_markdown(found, "../results/")
    assert (ROOT / "results" / "paper.csv").read_text() == paper_csv(found)
    assert (ROOT / "results" / "paper.tex").read_text() == paper_latex(found)


def test_every_cell_has_a_number_or_a_reason() -> None:
    table = page().table
    assert [*table][: len(METHODS)] == [*METHODS]
    for name, row in table.items():
        assert [*row] == [task.title for task in TASKS], name
        for cell in row.values():
            assert (cell.mean is None) is bool(cell.reason)
            assert (cell.text == "") is bool(cell.reason)
    assert table[SINKHORN]["CIFAR-100"].text == "67.71 (1)"
    assert table[SINKHORN]["AG News"].text == "91.60 ± 0.12 (3)"
    assert table[LOTFORMER]["IMDb"].reason == "not trained by this recipe"
    assert table["Sinkformer, published"]["CIFAR-100"].published


def test_bold_is_said_to_be_impossible_where_no_test_can_be_made() -> None:
    text = paper_markdown(page())
    assert "Nothing can be in bold for CIFAR-100, IMDb, WikiText-2: fewer than three seeds" in text
    table = text.partition("## Accuracy")[2].partition("##")[0]
    bold = [line for line in table.splitlines() if "**" in line]
    assert len(bold) == 1
    assert bold[0].count("**") == 2
    assert bold[0].startswith(f"| {SOFTMAX} | 68.09 (1) | *(1)* | **91.93 ± 0.13 (3)** |")


# Which records stand for a task


def test_no_accuracy_has_a_say_in_the_choice_of_records() -> None:
    records = load_records(PUBLISHED, strict=True)
    chosen = {title: group.slug for title, group in chosen_groups(grouped(records)).items()}
    assert chosen["CIFAR-100"].startswith("cifar100-qknorm-")
    changed = []
    for place, name in enumerate(sorted(PUBLISHED.glob("*.json"))):
        value = published(name.stem)
        for number, row in enumerate(value["rows"]):
            row["accuracy"] = (37 * place + number) % 89 / 100
        changed.append(typed(value))
    again = {title: group.slug for title, group in chosen_groups(grouped(changed)).items()}
    assert again == chosen


def test_most_trained_rivals_come_first_then_seeds() -> None:
    plain = typed(with_rival(published(PLAIN), "lotformer_x_trained", "LOTFormer, trained alike"))
    assert not plain.qk_norm
    both = [plain, typed(published(QKNORM))]
    for records in (both, both[::-1]):
        assert chosen_groups(grouped(records))["CIFAR-100"].first is plain


LEARNED = "cifar-vit-sinkhorn-c88251a1-s0-a2ecd18d"
"""Three maps of QKNORM's teacher, calibrated end to end; no rival was trained beside them."""


def test_asap_is_the_map_of_the_most_thorough_calibration() -> None:
    """Of the same teacher, which keeps the other methods of its column."""
    ridge, learned = published(QKNORM), published(LEARNED)
    for values in ((ridge, learned), (learned, ridge)):
        found = page_of(*values)
        assert found.table[ASAP]["CIFAR-100"].text == "67.78 ± 0.07 (1; 3 maps)"
        assert found.table[SOFTMAX]["CIFAR-100"].text == "68.09 (1)"
        assert "mean of 3 calibration seeds (cifar100-qknorm-9f75d685)" in paper_markdown(found)
        (claim,) = (c for c in found.claims if "competitive with softmax" in c.words)
        assert claim.ours == "-0.31 points"
    alone = page_of(ridge)
    assert alone.table[ASAP]["CIFAR-100"].text == "67.60 (1)"
    assert "32 slices, refine 0, ridge, 1024 samples; calibration seed 0" in paper_markdown(alone)


def test_the_map_of_another_teacher_does_not_stand_for_asap() -> None:
    learned = published(LEARNED)
    learned["artifact"]["teacher_sha256"] = "0" * 64
    learned["manifests"]["train"]["teacher_sha256"] = "0" * 64
    found = page_of(published(QKNORM), learned)
    assert found.table[ASAP]["CIFAR-100"].text == "67.60 (1)"


def test_a_low_accuracy_does_not_keep_a_better_calibration_away() -> None:
    learned = published(LEARNED)
    for row in learned["rows"]:
        row["accuracy"] = 0.1 if row["group"] == "asap" else row["accuracy"]
    found = page_of(published(QKNORM), learned)
    assert found.table[ASAP]["CIFAR-100"].mean == pytest.approx(0.1)
    assert speed_of(found.groups["CIFAR-100"]) is None


def test_each_map_of_one_teacher_is_compared_by_its_samples() -> None:
    """The largest p-value counts: one map alone tells nothing."""
    teacher, told = first_right(6000), first_right(5800)
    maps = {"asap": told, "map_0": told, "map_1": first_right(5999)}
    value = with_right(published(LEARNED), {"teacher": teacher, **maps})
    value["maps"] = {key: point for key, point in value["maps"].items() if key in maps}
    (group,) = grouped([typed(value)])
    found = compare(group, SINKHORN, ASAP)
    assert found is not None
    assert found.difference == pytest.approx((0.02 + 0.02 + 0.0001) / 3)
    assert (found.p, found.significant) == (1, False)


def test_commands_name_the_rows_that_make_a_column() -> None:
    groups = grouped(load_records(PUBLISHED, strict=True))
    rows = {False: "cifar_qknorm", True: "cifar_qknorm_learned"}
    found = Page(groups, [], [], lambda record: rows[bool(record.maps)])
    both = "make reproduce row=cifar_qknorm && make reproduce row=cifar_qknorm_learned"
    assert found.making("CIFAR-100") == both
    assert found.making("Yelp Full") == "make train task=yelp"
    assert page_of(published(QKNORM)).making("CIFAR-100") == "make reproduce task=cifar"


def test_coarse_models_and_fewer_epochs_do_not_take_the_column() -> None:
    value = after(25, with_rival(published(PLAIN), "lotformer_ab_trained", "L"))
    for number in range(3):
        value = with_rival(value, f"x{number}_trained", f"other {number}, trained alike")
    found = page_of(published(QKNORM), value)
    assert not found.groups["CIFAR-100"].first.run.endswith("00000025-s0")
    assert [*found.groups] == ["CIFAR-100"], "other norm: no shorter recipe of the same model"
    alike = after(60, with_rival(published(QKNORM), "x_trained", "other, trained alike"))
    rival = with_rival(published(PLAIN), "lotformer_ab_trained", "LOTFormer, trained alike")
    assert not page_of(alike, rival).groups["CIFAR-100"].first.qk_norm


def shorter_page() -> Page:
    """ESPFormer for 20 epochs alone, LOTFormer for 60 and for 20."""
    whole = with_rival(published(QKNORM), "lotformer_ab_trained", "LOTFormer, trained alike")
    return page_of(whole, after(20, with_espformer(whole)))


def test_a_rival_of_a_shorter_recipe_has_a_column_beside_the_whole_one() -> None:
    found = shorter_page()
    titles = [task.title for task in TASKS]
    assert found.titles() == [titles[0], f"{titles[0]} in 20 epochs", *titles[1:]]
    of = found.table[ESPFORMER]
    assert of["CIFAR-100"].text == ""
    assert of["CIFAR-100"].reason == "trained for fewer epochs: see CIFAR-100 in 20 epochs"
    assert of["CIFAR-100 in 20 epochs"].text == "68.09 (1)"
    for name in (SINKHORN, ASAP, SOFTMAX, LOTFORMER):
        assert found.table[name]["CIFAR-100"].seeds == 1
        assert found.table[name]["CIFAR-100 in 20 epochs"].seeds == 1
    their = found.table["Sinkformer, published"]
    assert (their["CIFAR-100"].published, their["CIFAR-100"].text) == (True, "64.95")
    assert their["CIFAR-100 in 20 epochs"].reason == "see CIFAR-100"
    text = paper_markdown(found)
    assert "every method of the column: CIFAR-100 in 20 epochs. They compare" in text
    origin = text.partition("## Where the columns come from")[2]
    assert re.search(
        r"\| CIFAR-100 in 20 epochs \|.*\| 20 \|.*\| `make reproduce task=cifar` \|", origin
    )
    assert re.search(r"\| CIFAR-100 \|.*\| 60 \|.*\| `make reproduce task=cifar` \|", origin)
    assert "Not trained for any task yet: differential." in text
    first_table = paper_latex(found).partition(r"\end{tabular}")[0]
    assert "CIFAR-100 in 20 epochs" in first_table
    rows = list(csv.DictReader(io.StringIO(paper_csv(found))))
    assert len({row["task"] for row in rows if row["kind"] == "accuracy"}) == len(TASKS) + 1


def test_without_a_further_rival_a_shorter_recipe_has_no_column() -> None:
    whole = with_espformer(published(QKNORM))
    found = page_of(whole, after(20, whole))
    assert [*found.groups] == ["CIFAR-100"]
    assert found.groups["CIFAR-100"].first.manifests.train.epochs == 60
    assert "shorter recipe" not in paper_markdown(found)


def test_claims_take_the_shorter_recipe_for_what_the_whole_one_lacks_alone() -> None:
    claims_of = {claim.words: claim for claim in shorter_page().claims}
    whole = {claim.words: claim for claim in page_of(published(QKNORM)).claims}
    for words, claim in claims_of.items():
        if "recent" not in words:
            assert claim == whole[words], words
    value = after(20, with_espformer(published(QKNORM)))
    (espformer,) = (row for row in value["rows"] if row["key"] == "espformer_trained")
    espformer["accuracy"] = 0.9
    rival = with_rival(value, "lotformer_ab_trained", "LOTFormer, trained alike")
    rival["rows"][-1]["accuracy"] = 0.99
    lotformer = with_rival(published(QKNORM), "lotformer_ab_trained", "LOTFormer, trained alike")
    found = next(c for c in page_of(lotformer, rival).claims if "recent" in c.words)
    asap = rows_of(typed(value))[ASAP].accuracy
    assert asap is not None
    assert found.ours == f"{100 * (asap - 0.9):+.2f} points", "not LOTFormer's of 20 epochs"
    assert f"{ESPFORMER} on CIFAR-100 in 20 epochs" in found.measured
    assert found.command == "make reproduce task=cifar"


def test_corrupted_images_and_part_of_the_layers_stand_for_no_task() -> None:
    names = [file.stem for file in PUBLISHED.glob("*.json")]
    values = [value for value in map(published, names) if value.get("corruption")]
    assert values
    assert chosen_groups(grouped(map(typed, values))) == {}


def test_another_teacher_stands_for_no_task() -> None:
    value = published(QKNORM)
    value["manifests"]["train"]["config"]["attention"] = {"name": "softmax"}
    assert chosen_groups(grouped([typed(value)])) == {}


@pytest.mark.parametrize(
    ("key", "label", "group", "name"),
    [
        ("teacher", "Sinkhorn teacher, T = 20", "teacher", SINKHORN),
        ("asap", "ASAP, all layers", "asap", ASAP),
        (
            "asap",
            "coarse duals, 16 tokens, one pass, grid, all layers",
            "coarse",
            "coarse duals, one pass",
        ),
        ("map_3", "coarse duals, 4 tokens, two-sided, seed 2", "coarse", "coarse duals, two-sided"),
        (
            "coarse_ab_trained",
            "coarse duals, 4 tokens, two-sided, trained alike",
            "coarse",
            "coarse duals, 4 tokens, two-sided, same recipe",
        ),
        ("map_1", "ASAP, 8 slices, refine 0, ridge, 9 samples", "asap", None),
        ("asap_layer_0", "ASAP, layer 0 alone", "asap", None),
        ("asap", "softmax by budget, all layers", "budget", "softmax by budget"),
        ("asap_layer_0", "softmax, layer 0 alone", "budget", None),
        ("asap_layer_0", "coarse duals, 16 tokens, one pass, layer 0 alone", "coarse", None),
        ("truncated_3", "Sinkhorn, T' = 3", "truncated", "Sinkhorn, T' = 3"),
        ("truncated_7", "Sinkhorn, T' = 7", "truncated", None),
        ("control_uniform", "control: uniform attention", "control", None),
        ("lotformer_ab_trained", "LOTFormer, trained alike", "rival", LOTFORMER),
        ("lotformer_cd_trained", "LOTFormer (pivots=8), trained alike", "rival", "LOTFormer (piv"),
        ("softmax_trained", "softmax, trained alike", "softmax", SOFTMAX),
    ],
)
def test_rows_of_records_are_methods(key: str, label: str, group: str, name: str | None) -> None:
    row: Any = SimpleNamespace(key=key, label=label, group=group)
    found = method_of(row)
    assert (found or "").startswith(name or "")
    assert (found is None) is (name is None)


# Tests and bold numbers


def test_the_best_is_bold_if_the_samples_say_so() -> None:
    teacher = first_right(6000)
    better = {"teacher": teacher, "asap": first_right(5900), "softmax_trained": first_right(6200)}
    group = cifar(better)
    table = accuracy_table({"CIFAR-100": group})
    assert table[SOFTMAX]["CIFAR-100"].best
    assert not table[SINKHORN]["CIFAR-100"].best
    found = compare(group, SINKHORN, SOFTMAX)
    assert found is not None
    assert found.difference == pytest.approx(-0.02)
    assert found.p == pytest.approx(2 * 0.5**200)
    assert found.how == "McNemar, 10,000 samples"
    assert found.detectable == detectable_by_samples(SAMPLES, 0.02)


def test_the_best_is_not_bold_if_one_other_cannot_be_told_from_it() -> None:
    almost = first_right(6205, wrong=10)
    right = {"teacher": first_right(6000), "asap": almost, "softmax_trained": first_right(6200)}
    group = cifar(right)
    assert best_of(group, [*METHODS]) is None
    found = compare(group, SOFTMAX, ASAP)
    assert found is not None
    assert found.difference == pytest.approx(0.0005)
    assert found.p == pytest.approx(0.3017578125)  # 10 against 5


def test_without_samples_nothing_is_bold_and_the_bound_holds() -> None:
    value = published(QKNORM)
    (group,) = grouped([typed(value)])
    assert best_of(group, [*METHODS]) is None
    found = compare(group, SINKHORN, ASAP)
    assert found is not None
    assert (found.p, found.bound) == (None, True)
    asap = rows_of(group.first)[ASAP]
    assert asap.agreement is not None
    assert found.detectable == detectable_by_samples(SAMPLES, 1 - asap.agreement)
    softmax = rows_of(group.first)[SOFTMAX]
    assert softmax.agreement is not None
    found = compare(group, ASAP, SOFTMAX)
    assert found is not None
    share = 2 - asap.agreement - softmax.agreement
    assert found.detectable == detectable_by_samples(SAMPLES, share)
    # Whatever the samples are: those right of one alone are predicted differently.
    draw = np.random.default_rng(0)
    one, two, labels = (draw.integers(0, 10, SAMPLES) for _ in range(3))
    two = np.where(draw.random(SAMPLES) < 0.9, one, two)
    labels = np.where(draw.random(SAMPLES) < 0.5, one, labels)
    share = float(((one == labels) != (two == labels)).mean())
    exact, bound = (detectable_by_samples(SAMPLES, x) for x in (share, float((one != two).mean())))
    assert exact is not None
    assert bound is not None
    assert exact < bound


def test_three_seeds_are_compared_over_seeds() -> None:
    group = chosen_groups(grouped(load_records(PUBLISHED, strict=True)))["AG News"]
    found = compare(group, SINKHORN, SOFTMAX)
    assert found is not None
    assert found.how == "t, 3 seeds"
    # By SciPy: ttest_rel of the three pairs.
    assert found.p == pytest.approx(0.00072966, rel=1e-4)
    assert compare(group, SINKHORN, LOTFORMER) is None


@pytest.mark.parametrize("lost", [0.0, 0.01])
def test_seeds_that_differ_alike_are_not_tested(lost: float) -> None:
    """Rounding alone would be their deviation, and the p-value 0."""
    values = []
    for seed, accuracy in enumerate((0.6, 0.7, 0.8)):
        value = with_seed(published(QKNORM), seed, accuracy)
        for row in value["rows"]:
            row["accuracy"] = accuracy - lost * (row["key"] != "teacher")
        values.append(typed(value))
    (group,) = grouped(values)
    found = compare(group, SINKHORN, SOFTMAX)
    assert found is not None
    assert found.difference == pytest.approx(lost)
    assert (found.p, found.significant, found.finds(0.5)) == (None, False, False)
    assert found.how == "3 seeds that differ alike, no deviation for a t test"


def test_a_teacher_that_is_never_right_has_nothing_to_recover() -> None:
    """A trial of a few test samples must not stop the report."""
    value = published(QKNORM)
    value["rows"][0]["accuracy"] = 0.0
    claim = next(c for c in Page(grouped([typed(value)]), [], []).claims if "recovers" in c.words)
    assert (claim.ours, claim.verdict) == ("", "open")


def test_records_of_other_samples_are_not_compared() -> None:
    flags = first_right(10)
    mine, theirs = (
        RightSamples(**packed_samples({"x": flags}, labels_hash(labels)))
        for labels in (np.zeros(SAMPLES), np.ones(SAMPLES))
    )
    assert paired_samples(mine, "x", mine, "x").p == 1
    with pytest.raises(UserError, match="x and x cannot be compared sample by sample"):
        paired_samples(mine, "x", theirs, "x")


@pytest.mark.parametrize(("samples", "wrong"), [(100, 0), (100, 1), (1000, 3)])
def test_few_samples_find_nothing_though_methods_agree_on_them(samples: int, wrong: int) -> None:
    flags = np.ones(samples, dtype=bool)
    other = flags.copy()
    other[:wrong] = False
    right = RightSamples(**packed_samples({"x": flags, "y": other}, labels_hash(np.zeros(samples))))
    test = paired_samples(right, "x", right, "y")
    assert test.detectable is None
    assert not test.finds(0.005), "half a point is less than these samples find"
    assert test.finds(0.2)


def test_rivals_fill_their_rows_when_they_come() -> None:
    value = with_rival(published(QKNORM), "lotformer_ab_trained", "LOTFormer, trained alike")
    value = with_rival(value, "lotformer_cd_trained", "LOTFormer (pivots=8), trained alike")
    found = Page(grouped([typed(value)]), [], [])
    assert found.table[LOTFORMER]["CIFAR-100"].text == "68.09 (1)"
    assert found.table["LOTFormer (pivots=8), same recipe"]["CIFAR-100"].text == "68.09 (1)"
    text = paper_markdown(found)
    assert "Not trained for any task yet: espformer, differential." in text
    claim = next(c for c in found.claims if "recent baselines" in c.words)
    assert (claim.ours, claim.verdict) == ("-0.49 points", "open"), "no samples say so"
    assert claim.measured.startswith(f"ASAP minus {LOTFORMER} on CIFAR-100")


# Claims


def test_claims_without_a_record_are_open() -> None:
    found = claims({}, accuracy_table({}), [], [], making=str)
    assert {claim.verdict for claim in found} == {"open"}
    assert {claim.ours for claim in found} == {""}


def steps(espformer: float) -> Any:
    rows = [
        SimpleNamespace(attention=name, step_ms=ms)
        for name, ms in {"sinkhorn": 10.0, "espformer": espformer}.items()
    ]
    return SimpleNamespace(task="catsdogs", device="NVIDIA H200", rows=rows)


@pytest.mark.parametrize(("ms", "verdict"), [(45.0, "holds"), (9.0, "fails")])
def test_training_cost_is_that_of_steps_in_one_record(ms: float, verdict: str) -> None:
    claim = training_cost([], [steps(ms), steps(50.0)])
    assert claim.verdict == verdict
    assert claim.ours == f"{ms / 10:.1f}x to 5.0x as long"


def test_operator_speed_is_the_worst_length_and_the_slowest_plain_map() -> None:
    records = [r for r in load_benchmarks(PUBLISHED / "benchmark") if r.mode == "forward"]
    claim = operator_speed(records, "sinkhorn_20", "fused", lambda n: n >= 512)
    assert (claim.ours, claim.verdict) == ("3.8x", "fails")
    assert "recorded inputs, n = 1024, 4096; random inputs, n = 512, 1024, 4096" in claim.measured
    slowest = "ASAP, 8 slices + query and adaptive features, fused"
    assert claim.measured.endswith(f"random inputs, n = 512, {slowest}")
    assert claim.command == "python -m asap_exp.benchmark inputs=random"
    short = operator_speed(records, "sinkhorn_20", "fused", lambda n: n < 512)
    assert (short.ours, short.verdict) == ("0.9x", "fails")
    assert operator_speed([], "sinkhorn_20", "fused", lambda n: True).verdict == "open"


def timing(ended: str, kind: str, teacher: float, n: int = 1024) -> Any:
    """A benchmark whose map takes 1 ms."""
    cells = [
        SimpleNamespace(method=method, label=method, status="timed", ms=SimpleNamespace(median=ms))
        for method, ms in {"sinkhorn_20": teacher, "asap_8": 1.0}.items()
    ]
    return SimpleNamespace(
        manifest=SimpleNamespace(ended=ended),
        inputs=SimpleNamespace(kind=kind),
        device="NVIDIA H200",
        rows=[SimpleNamespace(n=n, cells=cells)],
    )


def test_an_older_timing_does_not_outvote_a_newer_one() -> None:
    """Of each kind of inputs and length the newest counts, and of these the worst."""

    def claim(*records: Any) -> Any:
        return operator_speed(records, "sinkhorn_20", "fused", lambda n: True)

    slow, fast = timing("2026-11-01", "random", 2.0), timing("2026-12-01", "random", 7.0)
    for records in ((slow, fast), (fast, slow)):
        assert claim(*records).ours == "7.0x"
    recorded = timing("2026-11-01", "recorded", 20.0)
    assert claim(recorded, fast).ours == "7.0x", "no kind of inputs hides another"
    assert claim(recorded, timing("2026-12-01", "random", 3.0, n=64), fast).ours == "3.0x"
    assert claim(timing("2026-10-01", "recorded", 6.0), recorded).ours == "20.0x"


@pytest.mark.parametrize(("right", "counts"), [(5951, True), (5949, False)])
def test_speed_counts_at_matching_accuracy_alone(right: int, counts: bool) -> None:
    group = cifar({"teacher": first_right(6000), "asap": first_right(right)})
    (asap,) = (row for row in group.first.rows if row.key == "asap")
    assert speed_of(group) == (asap.layer_speedup if counts else None)
    assert asap.layer_speedup is not None


def test_a_map_that_loses_most_of_the_accuracy_fails() -> None:
    right = {
        "teacher": first_right(6000),
        "asap": first_right(5600),
        "softmax_trained": first_right(6000),
    }
    found = {c.words: c for c in Page([cifar(right)], [], []).claims}
    claim = next(c for words, c in found.items() if "recovers most" in words)
    assert (claim.ours, claim.difference, claim.verdict) == ("93.33 %", "-1.67 points", "fails")
    assert "larger than chance" in claim.measured
    claim = next(c for words, c in found.items() if "competitive with softmax" in words)
    assert (claim.ours, claim.verdict) == ("-4.00 points", "fails")


@pytest.mark.parametrize(
    ("asap", "wrong", "verdict"),
    [(5990, 0, "holds"), (5990, 600, "fails"), (6590, 590, "open"), (6530, 590, "open")],
    ids=["as good", "worse", "differs too much to tell", "worse, by chance"],
)
def test_competitive_is_who_could_have_been_found_worse(
    asap: int, wrong: int, verdict: str
) -> None:
    right = {
        "teacher": first_right(6000),
        "asap": first_right(asap, wrong),
        "softmax_trained": first_right(6000),
    }
    found = Page([cifar(right)], [], []).claims
    (claim,) = (c for c in found if "competitive with softmax" in c.words)
    assert claim.verdict == verdict, claim.measured


def imdb(right: Mapping[str, np.ndarray]) -> Group:
    """As `cifar`, as if of IMDb's test samples."""
    value = with_right(published(QKNORM), right)
    text = json.dumps(value).replace("cifar100", "imdb")
    (group,) = grouped([typed(json.loads(text))])
    return group


def test_competitive_fails_on_any_task_that_is_told_and_holds_on_all() -> None:
    """The largest gap may be chance where a smaller one, elsewhere, is not."""
    teacher = first_right(6000)

    def claim(of_cifar: np.ndarray, of_imdb: np.ndarray) -> Any:
        groups = [
            of({"teacher": teacher, "asap": asap, "softmax_trained": teacher})
            for of, asap in ((cifar, of_cifar), (imdb, of_imdb))
        ]
        found = Page(groups, [], []).claims
        return next(c for c in found if "competitive with softmax" in c.words)

    by_chance = first_right(6530, wrong=590)
    told = first_right(5945)
    failed = claim(by_chance, told)
    assert (failed.verdict, failed.ours) == ("fails", "-0.55 points")
    assert "on IMDb" in failed.measured
    unknown = first_right(6590, wrong=590)
    assert claim(first_right(5990), first_right(5995)).verdict == "holds"
    half = claim(first_right(5990), unknown)
    assert half.verdict == "open"
    assert "0.5 points could not have been found from softmax, same recipe on IMDb" in half.measured


def test_seeds_that_contradict_each_other_tell_nothing() -> None:
    """Each seed alone would be significant, in its own direction."""
    values = []
    for seed, count in ((0, 6200), (1, 5700)):
        teacher, rival = first_right(6000), first_right(count)
        right = {"teacher": teacher, "asap": teacher, "softmax_trained": rival}
        value = with_right(published(QKNORM), right)
        value["manifests"]["train"]["config"]["seed"] = seed
        value["run"] = value["run"].replace("-s0", f"-s{seed}")
        values.append(typed(value))
    (group,) = grouped(values)
    assert len(group.records) == 2
    found = compare(group, SINKHORN, SOFTMAX)
    assert found is not None
    assert (found.p, found.significant) == (1, False)
    assert "the seeds contradict each other" in found.how


# Files


def with_coarse(value: dict[str, Any], tokens: str) -> dict[str, Any]:
    """With coarse duals of both forms in the teacher's place."""
    copied = deepcopy(value)
    asap = next(row for row in copied["rows"] if row["key"] == "asap")
    for number, form in enumerate(("two-sided", "one pass")):
        size, *others = tokens.split(", ")
        label = ", ".join(["coarse duals", size, form, *others])
        row = {**asap, "key": f"map_9{number}", "label": label, "group": "coarse"}
        copied["rows"].append(row)
    return copied


def test_coarse_duals_have_a_row_for_either_form_and_a_word_on_their_tokens() -> None:
    text = paper_markdown(page_of(published(QKNORM)))
    assert "take no fit" not in text
    values = [with_coarse(published(name), size) for name, size in SIZES.items()]
    found = page_of(*values)
    names = [name for name in found.table if name.startswith("coarse")]
    assert names == ["coarse duals, two-sided", "coarse duals, one pass"]
    for title in ("CIFAR-100", "IMDb"):
        own = rows_of(found.groups[title].first)[ASAP]
        assert found.table[names[0]][title].mean == own.accuracy
    listed = "of these tokens: CIFAR-100 16 tokens, grid; IMDb 64 tokens."
    assert listed in paper_markdown(found)


def test_csv_has_every_cell_claim_and_comparison() -> None:
    found = page()
    rows = list(csv.DictReader(io.StringIO(paper_csv(found))))
    kinds = [row["kind"] for row in rows]
    cells = kinds.count("accuracy") + kinds.count("published")
    assert cells == len(found.table) * len(TASKS)
    assert kinds.count("claim") == len(found.claims)
    assert kinds.count("comparison") == len(found.comparisons())


def test_latex_tables_are_whole() -> None:
    text = paper_latex(page())
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert lines
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
            assert not re.search(r"(?<!\\)[%#_]", line)
    assert latex("50 % & a_b ± 1 <= {x}") == r"50 \% \& a\_b $\pm$ 1 $<$= \{x\}"


@pytest.mark.slow
def test_the_report_stage_writes_the_page(pipeline: Pipeline, tmp_path: Path) -> None:
    for number, given in enumerate(((), ("task=digits",))):
        out = tmp_path / str(number)
        where = [f"paths.results={pipeline.results}", f"out={out}", *given]
        run_report_stage(composed("report", where, ReportConfig))
        names = {"paper.md", "paper.csv", "paper.tex"}
        assert {name for name in names if (out / name).is_file()} == (set() if given else names)
    assert isinstance(load_records(tmp_path / "0" / "records")[0], EvaluationRecord)
