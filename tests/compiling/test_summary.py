"""What asap_exp.compile shows: its progress, how close each layer came, and advice."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import asap_exp
from asap_exp.attention import SinkhornAttention, attention_layers, record_inputs
from asap_exp.calibration.config import CalibrationConfig
from asap_exp.calibration.steps import AdamFit
from asap_exp.compiling import summary
from asap_exp.compiling.summary import LayerSummary, LayerTotal, advice, table
from tests.small_model import Classifier, loader, tokens

QUICK: dict[str, Any] = {"slices": 2, "candidates": 4}


def test_nothing_is_shown_without_progress(
    teacher: Classifier, capfd: pytest.CaptureFixture
) -> None:
    asap_exp.compile(teacher, loader(), **QUICK, progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_line_for_each_part_and_layer_where_there_is_no_terminal(
    teacher: Classifier, capfd: pytest.CaptureFixture
) -> None:
    """On stderr: what a script prints itself stays as it is."""
    steps = ("ridge", "learned_slices")
    few = AdamFit(updates=3, lr=0.01)
    asap_exp.compile(teacher, loader(), **QUICK, steps=steps, learned_slices=few)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.rpartition(": ")[0] for line in lines[:6]] == [
        "Compiling 2 layers",
        "Batches to fit on",
        "Batches to check on",
        "ridge, 2 layers",
        "learned_slices, first, second",
        "learned_slices, first, second, control without slices",
    ]
    assert lines[0].endswith(": ridge, learned_slices on 192 samples, 48 to check on")
    assert all(line.endswith(" s") for line in lines[1:6])
    assert lines[6].startswith("layer ")
    assert [line.split()[0] for line in lines[7:9]] == ["first", "second"]
    assert lines[-1].startswith("At 8 tokens")


def test_a_bar_on_a_terminal(
    teacher: Classifier, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", property(lambda _: True))
    asap_exp.compile(teacher, loader(), **QUICK)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err


def kl_of_plans(teacher: nn.Module, path: str, attend: Any, x: torch.Tensor) -> float:
    """KL(teacher's row || row of `attend`) from the plans themselves, over rows and heads."""
    with record_inputs(teacher) as recorded, torch.no_grad():
        teacher(x)
    q, k, *_ = recorded[path][0]
    plan, other = (
        a.plan(q.double(), k.double()) for a in (teacher.get_submodule(path).attend, attend)
    )
    return (plan * (plan / other).log()).sum(dim=-1).mean().item()


@pytest.mark.slow
def test_layers_are_compared_with_fewer_updates(
    teacher: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[LayerSummary] = []
    kept = summary.advice
    monkeypatch.setattr(
        summary, "advice", lambda layers, config: found.extend(layers) or kept(layers, config)
    )
    compiled = asap_exp.compile(teacher, loader(), slices=4)
    (held_out, _) = loader()[-1]
    assert [each.path for each in found] == ["first", "second"]
    for each in found:
        attend = attention_layers(compiled)[each.path].attend.double()
        kl = kl_of_plans(teacher, each.path, attend, held_out)
        assert each.kl == pytest.approx(kl, rel=1e-3)
        by_updates = {
            n: kl_of_plans(teacher, each.path, SinkhornAttention(num_iters=n), held_out)
            for n in (1, 2, 3, 5, 7)
        }
        assert each.updates == max((n for n, x in by_updates.items() if x >= kl), default=0)
        assert each.one_update == pytest.approx(by_updates[1], rel=1e-3)
        assert 0 < each.r_squared < 1
        assert each.tokens == 8
    errors = {each.path: each.column_error for each in found}
    with record_inputs(teacher) as recorded, torch.no_grad():
        teacher(held_out)
    for path, ((q, k, *_),) in recorded.items():
        plan = attention_layers(teacher)[path].attend.plan(q, k)
        assert errors[path] == pytest.approx((plan.sum(dim=-2) - 1).abs().mean().item(), rel=1e-4)
    assert max(each.updates for each in found) >= 2


GOOD = LayerSummary("blocks.0.attn", 0.97, 0.001, 5, 0.3, 0.003, 256)


def test_numbers_stand_below_their_headings() -> None:
    small = replace(GOOD, path="blocks.10.attn", r_squared=-0.25, kl=4.4e-9, updates=0)
    heading, *lines = table([GOOD, small])
    ends = heading.index("R²") + len("R²")
    for line in lines:
        assert line[:ends].endswith(f" {line.split()[1]}")
        for title, place in (("KL", 2), ("closer than", 3)):
            assert line[heading.index(title) :].startswith(f"{line.split()[place]} ")


def test_a_divergence_is_at_least_0_whatever_rounding_makes_of_it(teacher: Classifier) -> None:
    compiled = asap_exp.compile(teacher, loader(), **QUICK, progress=False)
    first, own = (attention_layers(net)["first"].attend for net in (compiled, teacher))
    total = LayerTotal(first, own)
    total.kl[0], total.rows = -4.4e-9, 1
    assert total.summary("first", 1.0).kl == 0


def advised(*layers: LayerSummary, **keys: Any) -> list[str]:
    config = CalibrationConfig(
        **{
            "name": "ridge",
            "steps": ["ridge"],
            "sequential": False,
            "slices": 8,
            "candidates": 32,
            "query_features": True,
            "adaptive": True,
            "logits": False,
            "refine": 0,
            "relaxed": False,
            "ridge": 1e-6,
            "samples": 1024,
            "holdout": 256,
            "batch_size": 64,
            "memory_mib": 64,
            "seed": 0,
            **keys,
        }
    )
    return advice(layers, config)


def test_advice_is_given_where_there_is_reason_for_it() -> None:
    assert advised(GOOD) == []
    (weak,) = advised(GOOD, replace(GOOD, path="blocks.1.attn", updates=1))
    assert weak.startswith("2 Sinkhorn updates are closer to the teacher than the map of blocks.1.")
    assert weak.endswith('try slices=16, logits=True, steps=("ridge", "learned_slices")')
    (weak,) = advised(
        replace(GOOD, updates=0), logits=True, steps=["ridge", "learned_slices"], slices=4
    )
    assert weak.endswith("try slices=8")
    steps = ["ridge", "kl", "end_to_end"]
    bare = {"query_features": False, "adaptive": False, "candidates": 8}
    (weak,) = advised(replace(GOOD, updates=0), steps=steps, **bare)
    assert weak.endswith(
        'try slices=16, candidates=16, steps=("ridge", "kl", "learned_slices", "end_to_end")'
    )
    assert advised(replace(GOOD, updates=0, kl=1e-5)) == []
    (untrained,) = advised(replace(GOOD, updates=0, kl=1e-9, one_update=1e-8))
    assert untrained.startswith("The teacher's plans are those of a single update")
    (unbalanced,) = advised(GOOD, replace(GOOD, path="blocks.1.attn", column_error=0.8))
    assert "miss their column sums, by 0.8 at blocks.1.attn" in unbalanced
    (short,) = advised(replace(GOOD, tokens=64))
    assert short.startswith("At 64 tokens, fewer updates")


@pytest.mark.parametrize(
    "options",
    [
        {"slices": 1, "candidates": 1, "query_features": False, "adaptive": False},
        {"slices": 0, "adaptive": False},
        {"slices": 1, "steps": ("ridge", "kl", "end_to_end"), "kl": AdamFit(2, 1e-4)},
        {"slices": 1, "one_pass": True, "logits": True},
    ],
)
def test_what_is_advised_can_be_compiled(teacher: Classifier, options: dict, capfd: Any) -> None:
    few = {"end_to_end": AdamFit(2, 1e-4)} if "kl" in options else {}
    asap_exp.compile(hard(teacher), loader(), **options, **few)
    advised = re.search(r"the map of \w+; try (.+)$", capfd.readouterr().err, re.MULTILINE)
    assert advised is not None
    given = options | eval(f"dict({advised[1]})") | few
    asap_exp.compile(
        hard(teacher), loader(), **given, learned_slices=AdamFit(2, 0.01), progress=False
    )


def hard(teacher: Classifier) -> Classifier:
    """Return a teacher whose plans are far from what a small map gives."""
    model = copy.deepcopy(teacher)
    for layer in attention_layers(model).values():
        with torch.no_grad():
            layer.get_parameter("qkv.weight").mul_(2)
    return model


@pytest.mark.parametrize("options", [{"sequential": True}, {"layers": ["second"]}, {"refine": 1}])
def test_every_kind_of_calibration_is_summarised(
    teacher: Classifier, options: dict, capfd: pytest.CaptureFixture
) -> None:
    compiled = asap_exp.compile(teacher, loader(), **QUICK, **options)
    table = capfd.readouterr().err.partition("\nlayer ")[2]
    layers = [line.split()[0] for line in table.splitlines()[1:]]
    assert [path for path in ("first", "second") if path in layers] == [
        path for path, a in attention_layers(compiled).items() if a.attend.name == "asap"
    ]


@pytest.mark.slow
def test_padded_tokens_count_for_nothing(teacher: Classifier, capfd: pytest.CaptureFixture) -> None:
    mask = torch.arange(8) >= (torch.arange(48) % 7 + 2)[:, None]
    tables = []
    for value in (0.0, 1e3):
        padded = [x.masked_fill(mask[:, :, None], value) for x, _ in loader()]
        asap_exp.compile(
            teacher,
            padded,
            **QUICK,
            layers=["first"],
            forward=lambda model, x: model(x, mask),
        )
        tables.append(capfd.readouterr().err.partition("\nlayer ")[2].splitlines()[1])
    assert tables[0] == tables[1]
    assert tokens(0).shape[1] == 8
