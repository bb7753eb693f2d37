"""Attentions and steps of other packages: what is followed, what is checked, what is refused."""

import importlib.metadata
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from asap_exp.attention import build_attention, canonical_options
from asap_exp.calibration.steps import Step
from asap_exp.core import app, plugins
from asap_exp.core.attention_options import known_attentions
from asap_exp.core.composing import compose, load_saved
from asap_exp.core.config import EvaluateConfig, TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import run_name
from asap_exp.core.sweep import Ledger
from asap_exp.distill.config import DistillConfig
from tests.own_modules import HALVED, TEMPERED, own_modules

OWN = ["task=digits", "attention=tempered", "attention._module=own_tempered"]


@pytest.fixture
def forget(tmp_path):
    """Two modules of a user; what makes this process forget them."""
    with own_modules(tmp_path, {"own_tempered": TEMPERED, "own_steps": HALVED}) as forget:
        yield forget


def refusal(*overrides: str, stage: str = "train", schema: type = TrainConfig) -> UserError:
    with pytest.raises(UserError) as error:
        compose(stage, overrides, schema)
    return error.value


def test_attention_of_a_module_is_taken_with_its_options(forget):
    config = compose("train", [*OWN, "attention.sharpness=3"], TrainConfig)
    assert config.attention == {"name": "tempered", "sharpness": 3}
    canonical = {"name": "tempered", "num_iters": 4, "sharpness": 3.0, "label": None}
    assert canonical_options(config.attention) == canonical
    assert build_attention(config.attention).eps == 1 / 3
    assert "tempered" in known_attentions()


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_module_is_no_part_of_the_configuration(forget, plus):
    words = ["task=digits", "attention=tempered", f"{plus}attention._module=own_tempered"]
    config = compose("train", words, TrainConfig)
    name = run_name(config)
    assert "_module" not in config.attention
    assert run_name(compose("train", OWN[:2], TrainConfig)) == name


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [False, True])
def test_module_is_taken_from_a_file_of_the_user(forget, tmp_path, monkeypatch, sweep):
    own = tmp_path / "conf"
    (own / "attention").mkdir(parents=True)
    (own / "attention/mine.yaml").write_text(
        "name: tempered\n_module: own_tempered\nnum_iters: 7\nsharpness: 0.5\n"
    )
    words = ["--config-dir", str(own), "task=digits", "attention=mine,softmax"]
    if not sweep:
        words[-1] = "attention=mine"
    found: list[dict] = []
    monkeypatch.setattr(sys, "argv", ["train", *words, *(["-m"] if sweep else [])])
    monkeypatch.setattr(Ledger, "folder", None)
    monkeypatch.chdir(tmp_path)
    app.main("train", TrainConfig, lambda config: found.append(config.attention))
    mine = {"name": "tempered", "num_iters": 7, "sharpness": 0.5}
    assert found == [mine, {"name": "softmax"}][: 2 if sweep else 1]


# Options of the own attention, and the words with which they are refused.
WRONG = {
    "attention.sharpness=-1": "must be above 0",
    "attention.sharpness=sharp": "must be a number",
    "attention.num_iters=2.5": "must be a whole number",
    "attention.label=3": "must be text (or null)",
    "attention.eps=1": "is not an option of attention=tempered. Its options: "
    "attention.num_iters, attention.sharpness, attention.label",
    "attention.sharpnes=1": "Did you mean attention.sharpness?",
}


@pytest.mark.parametrize(("override", "words"), WRONG.items())
def test_option_of_an_own_attention_is_checked_like_those_of_a_built_in_one(
    forget, override, words
):
    assert words in str(refusal(*OWN, override))


def test_option_without_a_default_must_be_set(forget, tmp_path):
    text = TEMPERED.replace("num_iters: int = 4", "num_iters: int")
    (tmp_path / "own_tempered.py").write_text(text)
    assert "attention.num_iters must be set" in str(refusal(*OWN))
    assert compose("train", [*OWN, "attention.num_iters=3"], TrainConfig)


def test_option_that_no_configuration_can_hold_is_refused(forget, tmp_path):
    text = TEMPERED.replace("num_iters: int = 4", "sizes: tuple = (1, 2), num_iters: int = 4")
    (tmp_path / "own_tempered.py").write_text(text)
    assert "the option sizes of the attention tempered must be a number" in str(refusal(*OWN))


def test_option_without_a_type_is_refused(forget, tmp_path):
    text = TEMPERED.replace("label: str | None = None", "label=None")
    (tmp_path / "own_tempered.py").write_text(text)
    assert "the option label of the attention tempered must be" in str(refusal(*OWN))


def test_name_of_another_attention_is_refused(forget, tmp_path):
    (tmp_path / "own_tempered.py").write_text(TEMPERED.replace('"tempered"', '"sinkhorn"'))
    message = str(refusal("task=digits", "attention._module=own_tempered"))
    assert message.startswith("the attention sinkhorn of own_tempered has the name of one of")
    assert (
        build_attention({"name": "sinkhorn"}).__class__.__module__ == "asap_exp.attention.sinkhorn"
    )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            "nothing_there",
            "attention._module=nothing_there cannot be imported; it must be installed",
        ),
        ("own_broken", "attention._module=own_broken cannot be imported (it needs lost_package)"),
        ("'1 + 1'", "must be the name of a module"),
        ("null", "attention._module=None is not allowed"),
    ],
)
def test_module_that_cannot_be_followed_is_a_sentence(forget, tmp_path, module, words):
    (tmp_path / "own_broken.py").write_text("import lost_package\n")
    assert words in str(refusal("task=digits", f"attention._module={module}"))


def test_unknown_attention_is_refused_with_the_way_to_name_its_module():
    error = refusal("task=digits", "attention=tempered")
    assert "choose one of coarse, differential, espformer" in str(error)
    assert str(error).endswith("or name the module that registers it: attention._module=MODULE")


def test_saved_configuration_names_no_module(forget, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("attention:\n  name: tempered\n  _module: own_tempered\n")
    with pytest.raises(UserError, match=r"attention\._module=own_tempered names a module, which a"):
        load_saved(file, TrainConfig)
    assert plugins.followed() == ()


def test_later_stages_take_the_module_on_their_command_line(forget):
    for stage, schema in (("distill", DistillConfig), ("evaluate", EvaluateConfig)):
        assert compose(stage, ["attention._module=own_tempered"], schema)
        assert plugins.followed() == ("own_tempered",)


def test_step_of_a_module_is_taken_with_its_settings(forget):
    words = ["calibration._module=own_steps", "calibration.steps=[ridge,scaled]"]
    calibration = compose("distill", words, DistillConfig).calibration
    assert [step.name for step in calibration.chosen(Step)] == ["ridge", "scaled"]
    assert (calibration.scaled.factor, calibration.scaled.word) == (0.5, "half")
    given = compose("distill", [*words, "calibration.scaled.factor=0.25"], DistillConfig)
    assert given.calibration.identity()["scaled"] == {"factor": 0.25, "word": "half"}
    assert "scaled" not in compose("distill", words[:1], DistillConfig).calibration.identity()


def test_settings_of_an_own_step_are_checked_like_those_of_a_built_in_one(forget):
    words = ("calibration._module=own_steps", "calibration.steps=[ridge,scaled]")
    distill = {"stage": "distill", "schema": DistillConfig}
    assert "above 0" in str(refusal(*words, "calibration.scaled.factor=0", **distill))
    assert "Did you mean factor?" in str(refusal(*words, "calibration.scaled.facto=1", **distill))
    forget()
    assert "calibration.steps=scaled is not allowed" in str(refusal(words[1], **distill))


# Installed packages


def install(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str, str]) -> None:
    """Stand in for an installed package with these entry points: group, name and value."""
    found = [EntryPoint(name, value, group) for group, name, value in entries]
    dist = SimpleNamespace(name="own-package", version="1.2", locate_file=Path)
    for entry in found:
        vars(entry).update(dist=dist)

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [entry for entry in found if entry.group == group]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    plugins.installed.cache_clear()


@pytest.fixture(autouse=True)
def installed_again():
    yield
    plugins.installed.cache_clear()


def test_installed_attention_needs_its_name_alone(forget, monkeypatch):
    install(monkeypatch, ("asap_exp.attentions", "tempered", "own_tempered"))
    assert known_attentions().count("tempered") == 1
    config = compose("train", ["task=digits", "attention=tempered"], TrainConfig)
    assert build_attention(config.attention).num_iters == 4
    assert plugins.followed() == ()
    origin = plugins.origin("attention", "tempered", type(build_attention(config.attention)))
    assert origin is not None
    assert (origin["distribution"], origin["version"]) == ("own-package", "1.2")


def test_installed_step_needs_its_name_alone(forget, monkeypatch):
    install(monkeypatch, ("asap_exp.calibration_steps", "scaled", "own_steps"))
    config = compose("distill", ["calibration.steps=[ridge,scaled]"], DistillConfig)
    assert config.calibration.scaled.factor == 0.5


def test_installed_package_that_does_not_keep_its_word_is_a_sentence(forget, monkeypatch, tmp_path):
    (tmp_path / "own_tempered.py").write_text("raise RuntimeError('no')")
    install(monkeypatch, ("asap_exp.attentions", "tempered", "own_tempered"))
    assert "cannot be loaded from own_tempered of own-package: RuntimeError: no" in str(
        refusal("task=digits", "attention=tempered")
    )
    (tmp_path / "own_tempered.py").write_text("")
    assert "which registers no attention of that name" in str(
        refusal("task=digits", "attention=tempered")
    )


def test_two_packages_with_one_name_are_refused(forget, monkeypatch):
    group = "asap_exp.attentions"
    install(monkeypatch, (group, "tempered", "own_tempered"), (group, "tempered", "other"))
    assert "two installed packages have an entry point tempered" in str(
        refusal("task=digits", "attention=tempered")
    )


def test_yaml_files_of_an_installed_package_are_found(forget, monkeypatch, tmp_path):
    (tmp_path / "own_package/conf/train/task").mkdir(parents=True)
    (tmp_path / "own_package/conf/train/task/mine.yaml").write_text(
        "# @package _global_\ndefaults: [digits, _self_]\ntask: mine\nmodel: {depth: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, ("asap_exp.conf", "own", "own_package.conf"))
    assert compose("train", ["task=mine"], TrainConfig).model.depth == 1
    assert compose("distill", ["task=mine"], DistillConfig).task.name == "mine"
    assert "mine" in refusal("task=min").allowed
