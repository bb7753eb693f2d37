"""Hydra and OmegaConf as the tests use them compose what they do as they are."""

import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from asap_exp.core.composing import compose
from asap_exp.core.errors import UserError
from tests.documents import ROOT, SCHEMAS

COMPOSED = [
    ("train", "task=digits"),
    ("train", "task=digits", "model.dim=16", "seed=3"),
    ("train", "task=imdb", "attention=softmax", "recipe.lr=1e-3"),
    ("train", "task=digits", "attention=sinkhorn", "attention.num_iters=4", "debug=fast"),
    ("train", "task=digits", "callbacks.extra=[{_target_: a.B, x: [1, {y: null}]}]"),
    ("train", "task=digits", "recipe.optimizer_options={betas: [0.8, 0.9]}"),
    ("train", "task=images", "data.path='a folder'"),
    ("distill", "task=digits", "layer=last", "calibration=sequential"),
    ("distill", "calibration.samples=32", "layer=index", "layer.index=0"),
    ("evaluate", "truncations=[1,2]", "latency.rounds=3"),
    ("report", "out=elsewhere"),
    ("benchmark", "cpu.n=[4,8]", "mode=train"),
    ("train", "task=digits", "model.dim=many"),
    ("train", "task=digits", "recipe.lrr=1"),
    ("train", "task=nothing"),
    ("distill", "layer={"),
]


def outcome(stage: str, *overrides: str) -> str:
    try:
        return repr(compose(stage, overrides, SCHEMAS[stage]))
    except UserError as error:
        return f"UserError: {error}"


def outcomes() -> list[str]:
    return [outcome(*case) for case in COMPOSED]


@pytest.mark.slow
def test_what_is_composed_is_the_same() -> None:
    code = "from tests.test_quick_hydra import outcomes; print(*outcomes(), sep='\\n---\\n')"
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    plain = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    expected = plain.stdout.removesuffix("\n").split("\n---\n")
    assert sum(text.startswith("UserError") for text in expected) == 4
    assert outcomes() == expected
    assert outcomes() == expected, "now of what is remembered"


def test_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "main.yaml"

    def read(*overrides: str) -> DictConfig:
        with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
            return hydra.compose("main", [*overrides])

    file.write_text("a: 1\nb: ${a}\n")
    assert read("a=2") == {"a": 2, "b": 2}
    assert read() == {"a": 1, "b": 1}
    file.write_text("a: 3\nb: [x]\n")
    os.utime(file, ns=(0, 0))  # even if the clock were too coarse
    assert read() == {"a": 3, "b": ["x"]}


def test_copy_is_whole_and_its_own() -> None:
    config = OmegaConf.create({"a": {"b": [1, {"c": "${a.d}"}], "d": 2}, "e": "???", "f": None})
    OmegaConf.set_struct(config, True)
    OmegaConf.set_readonly(config.a.b, True)
    copied = config.copy()
    assert copied == config
    assert OmegaConf.is_struct(copied)
    assert OmegaConf.is_missing(copied, "e")
    assert OmegaConf.is_readonly(copied.a.b)
    assert not OmegaConf.is_readonly(copied.a)
    copied.a.d = 5
    assert (copied.a.b[1].c, config.a.b[1].c) == (5, 2), "interpolated in its own tree"
    OmegaConf.set_readonly(copied.a.b, False)
    copied.a.b.append(3)
    assert len(config.a.b) == 2
    assert OmegaConf.is_readonly(config.a.b)
