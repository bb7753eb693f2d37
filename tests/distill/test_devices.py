"""Calibration on several devices: two processes on a CPU, which share the samples."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.calibration.artifact import QUERY_ONLY
from asap_exp.calibration.steps import STEPS, LayerStep
from asap_exp.core.composing import compose
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.tensors import load_tensors
from asap_exp.distill.config import DistillConfig
from tests.conftest import Pipeline
from tests.data.sentences import text_root
from tests.several import Ended, agreed, in_ranks
from tests.stages import run_distill, run_imitation, run_text

TWO = ("devices=2", "accelerator=cpu")
ODD = ("calibration.samples=33", "calibration.holdout=17")
"""Batches of 16, and one sample that a single rank has."""

EXACT = 0.0
"""Relative difference of a fit in closed form."""
ADAM = 1e-6
"""Relative difference after few of Adam's updates."""
MEASURED = 1e-6
"""Relative difference of what is measured in float32 afterwards."""
ROUNDED = 2e-3
"""Relative difference after Adam's updates: predictions so close leave few digits of a gradient."""
FAINT = 2e-2
"""The same of a control, whose gradients of 1e-8 are mostly rounding.

Ranks that forget to add up their gradients differ by 0.06 to 0.35.
"""


def in_two(results: Path, *overrides: str) -> Path:
    """Distil in two processes, and return the folder that both of them return."""
    return agreed(lambda: run_distill(results, *overrides, *TWO))


def assert_equal_maps(one: Path, two: Path, *, rel: float) -> None:
    assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}
    weights, others = (load_tensors(folder / "asap.safetensors") for folder in (one, two))
    for name, tensor in weights.items():
        scale = tensor.abs().max().item() if tensor.numel() else 0.0
        bound = FAINT if rel == ROUNDED and name.endswith(QUERY_ONLY) else rel
        assert torch.allclose(others[name], tensor, rtol=0, atol=bound * scale), name
    for file in ("asap.json", "fidelity.json"):
        assert_close(read_json(one / file), read_json(two / file), file, max(rel, MEASURED))


def assert_close(one: Any, two: Any, place: str, rel: float) -> None:
    """The same but for rounding; what is hashed differs with it."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), place
        for key in (key for key in one if not key.endswith("sha256")):
            assert_close(one[key], two[key], f"{place} {key}", rel)
    elif isinstance(one, list):
        for number, pair in enumerate(zip(one, two, strict=True)):
            assert_close(*pair, f"{place} {number}", rel)
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=rel, abs=rel / 10), place
    else:
        assert one == two, place


@pytest.fixture
def results(shared_pipeline: Pipeline, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of a teacher's results, and no map in them."""
    copies = tmp_path / "one", tmp_path / "two"
    for copy in copies:
        shutil.copytree(
            shared_pipeline.results,
            copy,
            ignore=shutil.ignore_patterns("distill", "evaluate", "checkpoints"),
        )
    return copies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "rel"),
    [
        (("calibration.candidates=9",), EXACT),
        (
            (
                *("calibration.sequential=true", "calibration.query_features=true"),
                *("calibration.adaptive=true", "calibration.batch_size=4"),
            ),
            EXACT,
        ),
        (("calibration=kl", "calibration.kl.updates=4", "calibration.memory_mib=1"), ADAM),
        (
            (
                *("calibration=end_to_end", "calibration.learned_slices.updates=3"),
                *("calibration.end_to_end.updates=3", "calibration.refine=1"),
            ),
            ROUNDED,
        ),
    ],
    ids=["ridge", "sequential", "kl", "end_to_end"],
)
def test_map_is_that_of_one_device(
    results: tuple[Path, Path], given: tuple[str, ...], rel: float
) -> None:
    one, two = results
    maps = run_distill(one, *ODD, *given), in_two(two, *ODD, *given)
    assert_equal_maps(*maps, rel=rel)


@pytest.mark.slow
def test_map_of_texts_is_that_of_one_device(tmp_path: Path) -> None:
    """Masked tokens, of which the ranks have unequal numbers, and batches of one text."""
    root = text_root(tmp_path / "data", "wikitext2")
    run_text(tmp_path / "one", root, "task=wikitext")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    given = (
        *("calibration=end_to_end", "calibration.learned_slices.updates=3"),
        *("calibration.end_to_end.updates=3", "calibration.samples=9", "calibration.holdout=5"),
        "calibration.batch_size=4",
    )
    maps = run_distill(tmp_path / "one", *given), in_two(tmp_path / "two", *given)
    assert_equal_maps(*maps, rel=ROUNDED)


FEW = (
    *("calibration.hedgehog.updates=4", "calibration.samples=33", "calibration.holdout=17"),
    *("calibration.batch_size=16", "accelerator=cpu"),
)


@pytest.mark.slow
def test_imitation_is_that_of_one_device(results: tuple[Path, Path]) -> None:
    one, two = results
    maps = run_imitation(one, *FEW), agreed(lambda: run_imitation(two, *FEW, "devices=2"))
    assert_equal_maps(*maps, rel=2 * ADAM)


@pytest.mark.slow
def test_imitation_on_texts_is_that_of_one_device(tmp_path: Path) -> None:
    """Texts are padded, and one batch is of a single text."""
    root = text_root(tmp_path / "data", "imdb")
    run_text(tmp_path / "one", root, "task=imdb", attention=("attention=softmax",))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    given = (*FEW, "calibration.samples=9", "calibration.holdout=5", "calibration.batch_size=4")
    maps = (
        run_imitation(tmp_path / "one", *given),
        agreed(lambda: run_imitation(tmp_path / "two", *given, "devices=2")),
    )
    assert_equal_maps(*maps, rel=ROUNDED)
    kl = read_json(maps[0] / "asap.json")["prediction_kl"]["imitations"]
    assert kl["after"] < kl["before"]


@pytest.mark.slow
def test_finished_map_is_left_as_it_is(results: tuple[Path, Path]) -> None:
    folder = in_two(results[1])
    written = (folder / "asap.safetensors").stat().st_mtime_ns
    assert in_two(results[1]) == folder == run_distill(results[1])
    assert (folder / "asap.safetensors").stat().st_mtime_ns == written


@pytest.mark.slow
def test_failure_of_rank_0_before_it_begins_ends_the_other(tmp_path: Path) -> None:
    first, second = in_ranks(lambda: run_distill(tmp_path, *TWO), seconds=20)
    assert first is not None
    assert "no finished" in first.error, first.error
    assert second == Ended(None, "SystemExit: 1", "")


class OneDevice(LayerStep):
    """Step that knows nothing of ranks."""

    name = "one_device"


REFUSED = [
    ("devices=0", "at least 1"),
    ("trainer.devices=2", "use accelerator, devices and num_nodes"),
    ("strategy=ddp", "it is for training"),
    ("devices=2 budget.latency_ratio=0.5", "2 devices were asked for, but a budget times"),
    ("num_nodes=2 calibration=coarse calibration.coarse.tokens=2", "coarse fits nothing"),
    (
        "devices=2 calibration.steps=[ridge,one_device]",
        "step one_device fits on one; set devices",
    ),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[given for given, _ in REFUSED])
def test_what_cannot_be_is_refused_with_what_can(
    given: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS, "one_device", OneDevice)
    with pytest.raises(UserError, match=words):
        compose("distill", given.split(), DistillConfig)
