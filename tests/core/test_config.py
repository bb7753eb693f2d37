"""Configurations: every file under conf/ composes, and errors name the wrong key."""

import inspect
import re
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from asap_exp.attention import ATTENTIONS, attention_options, build_attention
from asap_exp.calibration.steps import STEPS
from asap_exp.core import flags
from asap_exp.core.composing import compose, conf_dir, load_saved, parse, quoted
from asap_exp.core.conf_files import COMMON, attentions, tasks
from asap_exp.core.config import (
    LARGEST_RATE,
    LARGEST_SETTING,
    AttentionOptions,
    TrainConfig,
)
from asap_exp.core.errors import UserError
from asap_exp.core.overrides import check_overrides
from asap_exp.core.renamed import RENAMED
from asap_exp.core.runs import run_directory
from asap_exp.core.schema import field_of, fields_of, holds_path
from asap_exp.core.typed import LARGEST
from asap_exp.distill.config import DistillConfig
from tests.documents import SCHEMAS

COMMON_GROUPS = {"logger": ("train", "distill", "evaluate")}
"""By which stages the groups in conf/common are taken in; a new one must be added here."""

OWN_DATA = {
    ("data", "own_images"): "task=images",
    ("data", "own_texts"): "task=texts",
    ("experiment", "imagenet"): "experiment=imagenet",
    ("task", "catsdogs_folder"): "",
    ("task", "images"): "",
    ("task", "texts"): "",
    ("task", "texts_mlm"): "",
}
"""Options that need `data.path`, with the task that takes them in."""

EXPERIMENTS = sorted(conf_dir().glob("*/experiment/*.yaml"))


def commands_in(file: Path) -> list[tuple[str, list[str]]]:
    """Yield stage and overrides of every command in a comment of the file."""
    found = re.findall(r"python -m asap_exp\.(\w+) (.+)", file.read_text(encoding="utf-8"))
    return [(stage, overrides.split()) for stage, overrides in found]


def stage_of(experiment: Path) -> str:
    return experiment.parts[-3]


OPTIONS = sorted(
    [(stage, file) for stage in SCHEMAS for file in (conf_dir() / stage).glob("*/*.yaml")]
    + [
        (stage, file)
        for group, stages in COMMON_GROUPS.items()
        for file in (conf_dir() / COMMON / group).glob("*.yaml")
        for stage in stages
    ]
)


def composed(stage, *overrides):
    named = any(override.startswith("task=") for override in overrides)
    required = ["task=digits"] if stage == "train" and not named else []
    return compose(stage, [*required, *overrides], SCHEMAS[stage])


def refusal(stage, *overrides):
    """The error with which these overrides are refused."""
    with pytest.raises(UserError) as error:
        composed(stage, *overrides)
    return error.value


def refused(stage, *overrides):
    """The sentence of it."""
    return str(refusal(stage, *overrides))


@cache
def complete(stage, *overrides):
    return OmegaConf.create(asdict(composed(stage, *overrides)))


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def written_values(file: Path):
    """The values that one YAML file sets, by dotted key; interpolated and missing ones left out."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    tree.pop("defaults", None)
    tree.pop("hydra", None)  # Hydra's own: a sweep
    return {k: v for k, v in leaves(tree) if not (isinstance(v, str) and ("$" in v or v == "???"))}


def names_a_task(file: Path) -> bool:
    return "override /task" in file.read_text(encoding="utf-8")


def test_every_stage_and_every_group_has_a_place_in_these_tests():
    folders = {folder.name for folder in conf_dir().iterdir()}
    assert folders == {*SCHEMAS, COMMON, "reproduce"}
    common = {folder.name for folder in (conf_dir() / COMMON).iterdir()}
    # hydra holds Hydra's own settings, which every stage takes in.
    assert common == {*COMMON_GROUPS, "hydra"}


@pytest.mark.parametrize("stage", SCHEMAS)
def test_stage_composes_with_the_values_of_its_file(stage):
    values = dict(leaves(asdict(composed(stage, *(["task=cifar"] if stage == "train" else [])))))
    expected = written_values(conf_dir() / stage / f"{stage}.yaml")
    if stage != "train":
        expected["task.name"] = expected.pop("task")
    assert expected.items() <= values.items()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "file"),
    OPTIONS,
    ids=lambda x: x if isinstance(x, str) else f"{x.parent.name}={x.stem}",
)
def test_option_of_a_group_composes_with_the_values_of_its_file(stage, file):
    group, option = file.parent.name, file.stem
    overrides = [f"{group}={option}"]
    if group == "layer":
        overrides = [f"layer={option}", *(["layer.index=3"] if option == "index" else [])]
    # An experiment names its own task, or none: an ablation is of any.
    if stage == "train" and group != "task" and not names_a_task(file):
        overrides.append("task=imdb" if option in ("texts", "encoder") else "task=digits")
    if (group, option) in OWN_DATA:
        path = "data.path=somewhere"
        overrides = [f"task={option}" if group == "task" else OWN_DATA[group, option], path]
    values = dict(leaves(asdict(compose(stage, overrides, SCHEMAS[stage]))))
    whole = "@package _global_" in file.read_text(encoding="utf-8")
    expected = {k if whole else f"{group}.{k}": v for k, v in written_values(file).items()}
    if group in ("data", "model"):  # these values are there for tasks to change
        assert expected.keys() <= values.keys()
        return
    if group == "task":
        assert expected.pop("task") == option == values["task.name"]
    assert expected.items() <= values.items()


@pytest.mark.parametrize("stage", [stage for stage in SCHEMAS if stage != "train"])
@pytest.mark.parametrize("task", tasks())
def test_task_is_a_key_of_the_later_stages(stage, task):
    recorded = ["inputs=recorded"] if stage == "benchmark" else []
    assert composed(stage, f"task={task}", *recorded).task.name == task


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.stem)
def test_commands_in_an_experiment_compose(file):
    assert commands_in(file)[0][0] == stage_of(file)
    for stage, overrides in commands_in(file):
        assert compose(stage, overrides, SCHEMAS[stage])


@pytest.mark.parametrize(
    "file", [f for f in EXPERIMENTS if "hydra" in OmegaConf.load(f)], ids=lambda f: f.stem
)
def test_both_ends_of_a_sweep_compose_and_differ(file):
    stage, overrides = commands_in(file)[0]
    assert stage == stage_of(file)
    sweep = OmegaConf.load(file).hydra
    assert sweep.mode == "MULTIRUN"
    values = {key: str(found).split(",") for key, found in sweep.sweeper.params.items()}
    ends: list[Any] = [
        compose(stage, [*overrides, *(f"{k}={v[end]}" for k, v in values.items())], SCHEMAS[stage])
        for end in (0, -1)
    ]
    assert ends[0] != ends[1]


def test_task_brings_its_data_model_and_recipe():
    digits = compose("train", ["task=digits"], TrainConfig)
    cifar = compose("train", ["task=cifar"], TrainConfig)
    assert (digits.task.name, digits.data.name, digits.model.patch_size) == ("digits", "digits", 2)
    assert (cifar.task.name, cifar.data.name, cifar.recipe.batch_size) == ("cifar", "cifar100", 512)


def test_cifar10_is_one_override_away():
    cifar100 = asdict(compose("train", ["task=cifar"], TrainConfig))
    cifar10 = asdict(compose("train", ["task=cifar", "data.name=cifar10"], TrainConfig))
    assert cifar10["data"].pop("name") == "cifar10"
    assert cifar100["data"].pop("name") == "cifar100"
    assert cifar10 == cifar100


def test_fast_debugging_wins_over_an_experiment():
    config = compose("train", ["experiment=demo", "debug=fast"], TrainConfig)
    assert config.recipe.epochs == 1
    assert config.trainer.limit_train_batches == 2
    assert config.data.limit == 4000
    assert not config.model.qk_norm


def test_report_goes_into_the_results_folder():
    assert composed("report", "paths.results=elsewhere").folder == Path("elsewhere/report")
    assert composed("report", "out=here").folder == Path("here")
    assert composed("report", "paths.results=elsewhere", "out=here").out == "here"


@pytest.mark.slow
def test_frozen_is_the_default_layer():
    assert composed("distill").layer.which == "frozen"
    assert composed("distill") == composed("distill", "+layer=frozen")


@pytest.mark.slow
def test_layer_by_index():
    assert composed("distill", "layer=index", "layer.index=3").layer.index == 3
    assert composed("distill", "layer=index", "layer.index=0").layer.index == 0
    assert "layer.index=3" in refused("distill", "layer=index")
    assert "layer.index=-1" in refused("distill", "layer=index", "layer.index=-1")
    assert "read only with layer=index, not with frozen" in refused("distill", "layer.index=3")


@pytest.mark.parametrize("layer", ["last", "frozen", "all"])
def test_layer_needs_no_plus_and_may_have_one(layer):
    with_plus, without = (composed("distill", f"{plus}layer={layer}") for plus in ("+", ""))
    assert with_plus == without
    assert without.layer.which == layer


# (stage, unknown key, value, the key that was meant, some of the keys allowed there)
UNKNOWN = {
    "top": ("train", "sed", "1", "seed", ("task", "model", "seed", "resume")),
    "group": ("train", "model.dimm", "8", "dim", ("patch_size", "dim", "heads")),
    "deep": ("train", "data.augment.flp", "true", "flip", ("crop_padding", "flip", "cutmix")),
    "deeper": ("train", "data.augment.randaugment.magnitud", "3", "magnitude", ("num_ops",)),
    "attention": ("train", "attention.num_itres", "5", "num_iters", ("eps", "num_iters")),
    "distill": ("distill", "calibration.slice", "4", "slices", ("refine", "ridge", "holdout")),
    "evaluate": ("evaluate", "latency.round", "4", "rounds", ("batch_size", "rounds")),
    "benchmark": ("benchmark", "gpu.dtyp", "float16", "dtype", ("n", "tokens", "dtype")),
    "report": ("report", "ou", "here", "out", ("out", "run", "paths")),
}


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize("case", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_key_is_refused_however_it_is_given(case, plus):
    stage, key, value, meant, allowed = case
    error = refusal(stage, f"{plus}{key}={value}")
    given = f"{key}={'True' if value == 'true' else value}"
    assert str(error).startswith((f"{given}: there is no key", f"{given} is not an option of"))
    assert (error.key, error.hint) == (key, meant)
    assert set(allowed) <= set(error.allowed)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("relaxed=[6,7,8]", "relaxed_truncations"),
        ("samples=4", "fidelity_samples"),
        ("latency.cuda=true", "cuda_graph"),
        ("re=1", None),
    ],
)
def test_part_of_a_key_suggests_the_key(given, meant):
    assert refusal("evaluate", given).hint == meant


@pytest.mark.parametrize(
    ("stage", "given", "meant"),
    [
        ("train", "epochs=3", "recipe.epochs"),
        ("train", "lr=0.1", "recipe.lr"),
        ("train", "qk_norm=false", "model.qk_norm"),
        ("train", "precision=bf16", "trainer.precision"),
        ("train", "max_length=128", "data.max_length"),
        ("train", "eps=0.1", "attention.eps"),
        ("train", "results=foo", "paths.results"),
        ("train", "model.epochs=3", "recipe.epochs"),
        ("distill", "samples=10", "calibration.samples"),
        ("distill", "results=foo", "paths.results"),
        ("evaluate", "rounds=3", "latency.rounds"),
        ("benchmark", "results=foo", "paths.results"),
    ],
)
def test_a_key_of_another_group_is_suggested_with_its_group(stage, given, meant):
    error = refusal(stage, given)
    assert error.hint == meant
    assert f"Did you mean {meant}?" in str(error)


def test_several_keys_of_one_name_are_suggested_and_many_are_not(monkeypatch):
    assert "Did you mean calibration.slices or budget.slices?" in refused("distill", "slices=4")
    monkeypatch.setattr("asap_exp.core.schema.MOST_MEANT", 1)
    assert "slices or" not in refused("distill", "slices=4")


def test_key_of_another_stage_is_unknown():
    assert "calibration" in refused("train", "+calibration.slices=4")
    assert "seed" in refused("distill", "+seed=1")


def test_unknown_key_in_a_saved_configuration_is_refused():
    saved = OmegaConf.create(asdict(composed("train")))
    saved.epochs = 8
    with pytest.raises(UserError, match=r"^epochs=8.*Did you mean recipe\.epochs\?"):
        parse(saved, TrainConfig)
    del saved.epochs
    saved.model.dimm = 8
    with pytest.raises(UserError, match=r"model\.dimm=8.*Did you mean dim\?"):
        parse(saved, TrainConfig)


WRONG_TYPES = {
    "seed=abc": "a whole number",
    "seed=1.5": "a whole number",
    "model.dim=2.5": "a whole number",
    "model.qk_norm=maybe": "true or false",
    "recipe.lr=fast": "a number",
    "recipe.clip_norm=some": "a number (or null)",
    "recipe.epochs=null": "a whole number",
    "trainer.compile=perhaps": "true or false (or null)",
    "logger.tags=digits": "list",
}


@pytest.mark.parametrize(("override", "wanted"), WRONG_TYPES.items())
def test_wrong_type_is_refused_with_the_type_that_is_wanted(override, wanted):
    message = refused("train", override)
    assert message.startswith(override.split("=")[0])
    assert wanted in message


def test_seed():
    assert composed("train").seed == 0
    assert composed("train", "seed=0").seed == 0
    assert composed("train", f"seed={2**32 - 1}").seed == 2**32 - 1
    assert refused("train", "seed=null").startswith("seed is missing")
    assert "seed=-1" in refused("train", "seed=-1")
    assert f"seed={2**32}" in refused("train", f"seed={2**32}")


# Each override is out of its range; the words say what is allowed.
BAD_VALUES = {
    "train": {
        "data.augment.randaugment.num_ops=-1": "at least 0",
        "data.augment.randaugment.magnitude=-1": "at least 0 and at most 30",
        "data.augment.randaugment.magnitude=31": "at least 0 and at most 30",
        "data.augment.randaugment.groups=0": "at least 1",
        "data.augment.crop_padding=-1": "at least 0",
        "data.augment.mixup=-0.1": "at least 0",
        "data.augment.mixup=nan": "at least 0",
        "data.augment.cutmix=-0.1": "at least 0",
        "data.image_size=0": "at least 1",
        "data.val_fraction=0.0": "above 0 and below 1",
        "data.val_fraction=1.0": "above 0 and below 1",
        "data.split_seed=-1": "at least 0 and at most 4294967295",
        "data.train_on=val": "train, train+val",
        "model.patch_size=0": "at least 1",
        "model.dim=0": "at least 1",
        "model.depth=0": "at least 1",
        "model.heads=0": "at least 1",
        "model.mlp_ratio=0.0": "above 0",
        "model.drop_path=-0.1": "at least 0 and below 1",
        "model.drop_path=1.0": "at least 0 and below 1",
        "model.dropout=-0.1": "at least 0 and below 1",
        "model.dropout=1.0": "at least 0 and below 1",
        "recipe.epochs=0": "at least 1",
        "recipe.batch_size=0": "at least 1",
        "recipe.lr=0.0": "above 0",
        "recipe.weight_decay=-0.1": "at least 0",
        "recipe.warmup_epochs=-1.0": "at least 0 and below 40",
        "recipe.final_lr_ratio=-0.1": "at least 0 and at most 1",
        "recipe.final_lr_ratio=1.1": "at least 0 and at most 1",
        "recipe.label_smoothing=-0.1": "at least 0 and below 1",
        "recipe.label_smoothing=1.0": "at least 0 and below 1",
        "recipe.clip_norm=0.0": "above 0",
        "recipe.ema_decay=0.0": "above 0 and below 1",
        "recipe.ema_decay=1.0": "above 0 and below 1",
        "recipe.keep=first": "best, last",
        "trainer.accelerator=tpu": "auto, cpu, gpu",
        "trainer.precision=64": "auto, 32-true, bf16-mixed, 16-mixed",
        "trainer.log_every_n_steps=0": "at least 1",
        "trainer.cpu_threads=0": "at least 1",
        "trainer.limit_train_batches=0": "at least 1",
        "trainer.limit_val_batches=0": "at least 1",
        "callbacks.val_every_n_epochs=0": "at least 1",
        "callbacks.diagnostic_samples=-1": "at least 0",
    },
    "distill": {
        "layer.which=middle": "frozen, all, first, last, index",
        "calibration.name=lasso": ", ".join([*STEPS, "sequential", "coarse"]),
        "calibration.steps=[ridge,lasso]": ", ".join(STEPS),
        "calibration.kl.updates=0": "at least 1",
        "calibration.learned_slices.lr=0.0": "above 0",
        "calibration.end_to_end.lr=nan": "above 0",
        "calibration.memory_mib=0": "at least 1",
        "budget.accuracy_drop=-0.1": "at least 0 and at most 100",
        "budget.latency_ratio=0.0": "above 0",
        "budget.slices=[2,0]": "at least 1",
        "budget.refine=[-1]": "at least 0",
        "budget.truncations=[0]": "at least 1",
        "budget.relaxed_truncations=[0]": "at least 1",
        "budget.relaxation=2.0": "above 0 and below 2",
        "budget.latency.rounds=2": "at least 3",
        "calibration.slices=-1": "at least 0",
        "calibration.coarse.tokens=0": "at least 1",
        "calibration.coarse.choice=all": "sequence, grid, random, farthest, kmeans, staggered",
        "calibration.coarse.weights=all": "equal, voronoi",
        "calibration.form=three": "two_sided, one_pass",
        "budget.coarse_tokens=[0]": "at least 1",
        "calibration.refine=-1": "at least 0",
        "calibration.ridge=0.0": "above 0",
        "calibration.samples=0": "at least 1",
        "calibration.holdout=0": "at least 1",
        "calibration.batch_size=0": "at least 1",
        "calibration.seed=-1": "at least 0 and at most 4294967295",
        "calibration.seed=4294967296": "at least 0 and at most 4294967295",
        "accelerator=tpu": "auto, cpu, gpu",
    },
    "evaluate": {
        "maps=some": "one, all",
        "corruption.name=fog": "null, noise, blur, contrast",
        "corruption.severity=6": "at least 1 and at most 5",
        "batch_size=0": "at least 1",
        "max_test_rows=0": "at least 1",
        "truncations=[3,0]": "at least 1",
        "relaxed_truncations=[3,0]": "at least 1",
        "relaxation=0.0": "above 0 and below 2",
        "fidelity_samples=0": "at least 1",
        "latency.batch_size=0": "at least 1",
        "latency.rounds=2": "at least 3",
        "accelerator=tpu": "auto, cpu, gpu",
    },
    "benchmark": {
        "mode=backward": "forward, train, step",
        "inputs=zeros": "random, recorded",
        "backend=cuda": "auto, reference, triton",
        "accelerator=tpu": "auto, cpu, gpu",
        "seed=-1": "at least 0 and at most 4294967295",
        "gpu.n=[0]": "at least 1",
        "gpu.tokens=0": "at least 1",
        "cpu.heads=0": "at least 1",
        "cpu.head_dim=0": "at least 1",
        "cpu.dtype=float64": "bfloat16, float16, float32",
        "cpu.rounds=2": "at least 3",
    },
}


@pytest.mark.parametrize(
    ("stage", "override", "allowed"),
    [(stage, *case) for stage, cases in BAD_VALUES.items() for case in cases.items()],
)
def test_value_out_of_range_is_refused_with_the_range(stage, override, allowed):
    # Put into a composed configuration, because composing each one again is slow.
    given = OmegaConf.merge(complete(stage), OmegaConf.from_dotlist([override]))
    with pytest.raises(UserError) as error:
        parse(given, SCHEMAS[stage])
    key, value = override.split("=")
    message = str(error.value)
    assert message.startswith(f"{key}={value.strip('[]').split(',')[-1]} is not allowed")
    assert message.endswith(allowed)


# Each override of task=imdb is out of its range; the words say what is allowed.
BAD_TEXT_VALUES = {
    "data.objective=causal": "classification, mlm",
    "data.split=official": "standard, pooled",
    "data.layout=packed": "texts, blocks",
    "data.max_length=1": "at least 2",
    "data.truncation=tail": "head, ends",
    "data.vocab_size=256": "at least 320",
    "data.length_multiple=0": "at least 1",
    "data.mask_share=1.0": "at least 0 and below 1",
    "data.mask_seed=-1": "at least 0 and at most 4294967295",
    "data.val_fraction=0.0": "above 0 and below 1",
    "model.positions=rotary": "learned, sinusoidal, frozen_noise",
    "model.pooling=last": "mean, max, cls, max_padded",
    "model.norm=both": "pre, post",
    "model.activation=swish": "gelu, relu",
    "model.dim=0": "at least 1",
    "recipe.lr_drop_epoch=0": "at least 1 and below 12",
}


@pytest.mark.parametrize(("override", "allowed"), BAD_TEXT_VALUES.items())
def test_value_of_a_text_task_out_of_range_is_refused_with_the_range(override, allowed):
    given = OmegaConf.merge(complete("train", "task=imdb"), OmegaConf.from_dotlist([override]))
    with pytest.raises(UserError) as error:
        parse(given, TrainConfig)
    assert str(error.value).startswith(f"{override} is not allowed")
    assert str(error.value).endswith(allowed)


# Commands of which one key does not fit another, which is a default; the words say what does.
BESIDE_ANOTHER = {
    "train task=digits recipe.epochs=3": (
        "recipe.epochs=3 needs recipe.warmup_epochs below 3, got 3; give recipe.warmup_epochs=1"
    ),
    "train task=digits recipe.epochs=1": (
        "recipe.epochs=1 needs recipe.warmup_epochs below 1, got 3; give recipe.warmup_epochs=0"
    ),
    "train task=digits recipe.warmup_epochs=40.5": (
        "recipe.epochs=40 needs recipe.warmup_epochs below 40, got 40.5; give "
        "recipe.warmup_epochs=13"
    ),
    "train task=imdb recipe.lr_drop_epoch=12": (
        "recipe.epochs=12 needs recipe.lr_drop_epoch below 12, got 12; give recipe.lr_drop_epoch=8"
    ),
    "train task=imdb data.batch_tokens=511": (
        "data.max_length=512 needs data.batch_tokens at least 512, got 511; give "
        "data.batch_tokens=512"
    ),
    "train task=cifar data.augment.crop_padding=33": (
        "data.image_size=32 needs data.augment.crop_padding at most 32, got 33; give "
        "data.augment.crop_padding=4"
    ),
    "distill calibration=learned_slices calibration.slices=200": (
        "calibration.slices=200 needs calibration.candidates at least 200, got 128; give "
        "calibration.candidates=200"
    ),
}


@pytest.mark.parametrize(("command", "words"), BESIDE_ANOTHER.items())
def test_key_that_does_not_fit_another_is_refused_with_a_value_that_does(command, words):
    stage, *given = command.split()
    with pytest.raises(UserError) as error:
        compose(stage, given, SCHEMAS[stage])
    assert str(error.value) == words
    compose(stage, [*given, words.split("; give ")[1]], SCHEMAS[stage])


def test_masked_language_model_needs_masks():
    assert "data.mask_share=0.0" in refused(
        "train", "task=imdb", "data.objective=mlm", "data.mask_share=0"
    )
    assert composed("train", "task=imdb", "data.mask_share=0").data.mask_share == 0


def test_blocks_have_no_class():
    assert "needs data.objective=mlm" in refused("train", "task=imdb", "data.layout=blocks")


def test_causal_model_is_refused():
    message = refused("train", "task=imdb", "model.causal=true")
    assert "Causal models have no doubly-stochastic plan with uniform marginals" in message


def test_key_of_the_other_kind_of_data_is_refused():
    texts = OmegaConf.merge(complete("train", "task=imdb"), {"data": {"image_size": 8}})
    with pytest.raises(UserError, match=r"data\.image_size=8: there is no key"):
        parse(texts, TrainConfig)
    images = OmegaConf.merge(complete("train"), {"data": {"max_length": 8}})
    with pytest.raises(UserError, match=r"data\.max_length=8: there is no key"):
        parse(images, TrainConfig)


def test_unknown_model_is_refused_with_those_there_are():
    given = OmegaConf.merge(complete("train"), {"model": {"name": "mixer"}})
    with pytest.raises(UserError, match=r"model\.name=mixer is not allowed.*vit, encoder"):
        parse(given, TrainConfig)


# Values at the closed ends of their ranges, all given at once.
LOWEST = {
    "train": (
        "data.augment.randaugment={num_ops:0,magnitude:0,groups:1} data.augment.crop_padding=0 "
        "data.augment.mixup=0 data.augment.cutmix=0 data.image_size=1 data.val_fraction=1e-9 "
        "data.split_seed=0 model.patch_size=1 model.dim=1 model.depth=1 model.heads=1 "
        "model.mlp_ratio=1e-9 model.drop_path=0 model.dropout=0 recipe.epochs=1 "
        "recipe.batch_size=1 recipe.lr=1e-9 recipe.weight_decay=0 recipe.warmup_epochs=0 "
        "recipe.final_lr_ratio=0 recipe.label_smoothing=0 recipe.clip_norm=1e-9 "
        "recipe.ema_decay=1e-9 trainer.cpu_threads=1 trainer.log_every_n_steps=1 "
        "trainer.limit_train_batches=1 trainer.limit_val_batches=1 "
        "callbacks.val_every_n_epochs=1 callbacks.diagnostic_samples=0"
    ),
    "distill": (
        "calibration.slices=1 calibration.refine=0 calibration.ridge=1e-9 calibration.samples=1 "
        "calibration.holdout=1 calibration.batch_size=1 calibration.seed=0"
    ),
    "evaluate": (
        "batch_size=1 max_test_rows=1 truncations=[1] fidelity_samples=1 latency.batch_size=1 "
        "latency.rounds=3"
    ),
    "benchmark": (
        "seed=0 cpu.n=[1] cpu.tokens=1 cpu.heads=1 cpu.head_dim=1 cpu.rounds=3 gpu.rounds=3"
    ),
}
HIGHEST = {
    "train": (
        "data.augment.randaugment.magnitude=30 data.val_fraction=0.999 model.drop_path=0.999 "
        "model.dropout=0.999 recipe.warmup_epochs=39.9 recipe.final_lr_ratio=1 "
        "recipe.label_smoothing=0.999 recipe.ema_decay=0.999"
    ),
}


@pytest.mark.parametrize(
    ("stage", "overrides"), [*LOWEST.items(), *HIGHEST.items()], ids=lambda text: text[:12]
)
def test_ends_of_the_ranges_are_allowed(stage, overrides):
    values = dict(leaves(asdict(composed(stage, *overrides.split()))))
    for override in overrides.split():
        key, value = override.split("=")
        if value[0] not in "{[":
            assert values[key] == float(value)


OPTIONAL = {
    "train": "recipe.clip_norm recipe.ema_decay trainer.compile trainer.cpu_threads "
    "trainer.limit_train_batches trainer.limit_val_batches data.root data.cache logger.entity",
    "evaluate": "max_test_rows teacher artifact",
    "benchmark": "teacher data.root data.cache",
}


@pytest.mark.parametrize(("stage", "keys"), OPTIONAL.items())
def test_null_is_a_value_of_every_optional_key(stage, keys):
    values = dict(leaves(asdict(composed(stage, *(f"{key}=null" for key in keys.split())))))
    assert all(values[key] is None for key in keys.split())


def test_best_epoch_needs_validation_images():
    assert "recipe.keep=last" in refused("train", "data.train_on=train+val", "recipe.keep=best")
    config = composed("train", "data.train_on=train+val", "recipe.keep=last")
    assert config.data.train_on == "train+val"


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("[]", "must begin with ridge"),
        ("[kl]", "must begin with ridge"),
        ("[ridge,kl,kl]", "name no step twice"),
        ("[ridge,end_to_end,kl]", "end_to_end must come last"),
    ],
)
def test_steps_that_do_not_follow_each_other_are_refused(steps, words):
    assert words in refused("distill", f"calibration.steps={steps}")


def test_one_budget_at_a_time():
    words = refused("distill", "budget.accuracy_drop=1", "budget.latency_ratio=0.5")
    assert "budget.accuracy_drop=1.0 and budget.latency_ratio=0.5 are two budgets" in words


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("evaluate", "truncations=[1, 2, 1]"),
        ("evaluate", "relaxed_truncations=[1, 2, 1]"),
        ("distill", "budget.slices=[4, 4]"),
        ("distill", "budget.refine=[0, 0]"),
        ("distill", "budget.truncations=[3, 3]"),
    ],
)
def test_nothing_is_measured_twice_under_one_name(stage, override):
    assert refused(stage, override) == f"{override} is not allowed; remove the duplicates"


@pytest.mark.parametrize("name", ["sequential", "end_to_end"])
def test_budget_refuses_calibrations_in_which_layers_depend_on_each_other(name):
    words = refused("distill", f"calibration={name}", "budget.accuracy_drop=1")
    assert f"calibration={name} fits layers by one another" in words


@pytest.mark.slow
def test_calibrations_differ_in_what_their_names_say():
    calibrations = {
        name: composed("distill", f"calibration={name}").calibration
        for name in ("ridge", "kl", "learned_slices", "end_to_end", "sequential")
    }
    assert {name: c.steps for name, c in calibrations.items()} == {
        "ridge": ["ridge"],
        "kl": ["ridge", "kl"],
        "learned_slices": ["ridge", "learned_slices"],
        "end_to_end": ["ridge", "learned_slices", "end_to_end"],
        "sequential": ["ridge", "learned_slices"],
    }
    assert [c.sequential for c in calibrations.values()] == [False] * 4 + [True]


def test_settings_of_steps_that_are_not_taken_are_no_part_of_the_identity():
    plain, other = (
        composed("distill", *overrides).calibration.identity()
        for overrides in ([], ["calibration.kl.lr=1", "calibration.end_to_end.updates=1"])
    )
    assert plain == other
    taken = composed("distill", "calibration=kl", "calibration.kl.lr=1").calibration.identity()
    assert taken["kl"] == {"updates": 300, "lr": 1.0}
    assert "end_to_end" not in taken


def test_benchmark_has_one_amount_of_work_in_every_row():
    message = refused("benchmark", "cpu.n=[64,48]")
    assert message.startswith("cpu.tokens=4096 must be a multiple of cpu.heads x n = 4 x 48")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cpu.methods=[flash,flash]", "remove the duplicates"),
        ("cpu.n=[]", "at least one"),
        ("gpu.n=[64,64]", "remove the duplicates"),
    ],
)
def test_benchmark_names_a_row_or_a_method_once(override, words):
    assert words in refused("benchmark", override)


@pytest.mark.parametrize("override", ["teacher=somewhere", "task=digits"])
def test_benchmark_of_random_inputs_has_no_teacher(override):
    assert "is read only with inputs=recorded" in refused("benchmark", override)
    assert composed("benchmark", override, "inputs=recorded").inputs == "recorded"


@pytest.mark.parametrize("name", ["softmax", "uniform"])
def test_option_of_another_attention_is_refused_with_those_there_are(name):
    error = refusal("train", f"attention={name}", "+attention.num_iters=3")
    assert (error.key, error.value, error.allowed) == ("attention.num_iters", 3, ())
    assert "is not an option of" in str(error)
    with pytest.raises(UserError, match=r"attention\.num_iters=3 is not an option of"):
        build_attention({"name": name, "num_iters": 3})


def test_option_that_sinkhorn_does_not_have_is_refused_with_its_own():
    error = refusal("train", "+attention.half_steps=3")
    assert set(error.allowed) == set(attention_options("sinkhorn"))
    assert "attention.refine=1 is not an option of" in refused("train", "+attention.refine=1")
    assert refusal("train", "attention.num_itres=3").hint == "num_iters"


@pytest.mark.parametrize("name", ["softmax", "espformer"])
def test_wrong_option_is_refused_with_those_of_this_attention(name):
    error = refusal("train", f"attention={name}", "attention.foo=1")
    assert error.allowed == tuple(attentions()[name])
    assert f"is not an option of attention={name}" in str(error)


def test_the_files_of_the_attentions_name_them_and_their_options():
    """So that a command line is checked without the classes, which PyTorch comes with."""
    usual = {
        name: {
            option: inspect.signature(cls.__init__).parameters[option].default
            for option in attention_options(name)
        }
        for name, cls in ATTENTIONS.items()
        if not cls.needs_calibration
    }
    assert attentions() == usual


WRONG_OPTIONS = {
    "sinkhorn": {
        "num_iters": 0,
        "gradient_updates": 0,
        "implicit_steps": 0,
        "eps": 0.0,
        "backend": "cuda",
    },
    "relaxed_sinkhorn": {"num_iters": 0, "eps": -1.0, "relaxation": 2.0, "backend": "cuda"},
    "sinkformer": {"half_steps": 4, "eps": 0.0, "gradient": "none", "padding": "none"},
    "espformer": {
        "temperature": -1.0,
        "tau": 0.0,
        "sorting": "none",
        "slices": -1,
        "backend": "cuda",
    },
    "differential": {"lambda_per": "none"},
    "lotformer": {"pivots": 0, "num_iters": 0, "eps": 0.0, "pivot_std": 0.0},
    "coarse": {
        "tokens": 0,
        "subset": "all",
        "weights": "none",
        "seed": -1,
        "grid_width": -1,
        "num_iters": 0,
        "refine": -1,
        "implicit_steps": 0,
        "eps": 0.0,
        "backend": "cuda",
    },
}
"""The same values are refused by the classes."""


def test_option_that_is_null_by_default_takes_its_type():
    for value, held in (("null", None), ("3", 3)):
        config = composed("train", f"attention.gradient_updates={value}")
        assert config.attention["gradient_updates"] == held
    words = refused("train", "attention.gradient_updates=few")
    assert "must be a whole number (or null)" in words


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [(name, *case) for name, options in WRONG_OPTIONS.items() for case in options.items()],
)
def test_value_of_an_option_is_refused_before_the_attention_is_built(name, option, value):
    error = refusal("train", f"attention={name}", f"attention.{option}={value}")
    assert (error.key, error.value) == (f"attention.{option}", value)
    with pytest.raises(UserError):
        build_attention({"name": name, option: value})


def test_every_option_with_a_rule_is_one():
    options = {option for tree in attentions().values() for option in tree}
    assert set(fields_of(AttentionOptions)) <= options
    assert set(fields_of(AttentionOptions)) == {o for t in WRONG_OPTIONS.values() for o in t}


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("num_iters", "2.5", "a whole number"),
        ("num_iters", "true", "a whole number"),
        ("eps", "text", "a number"),
        ("backend", "3", "text"),
    ],
)
def test_option_of_another_type_is_refused(option, value, wanted):
    assert refusal("train", f"attention.{option}={value}").allowed == wanted


def test_asap_cannot_be_trained_and_the_refusal_says_what_to_run():
    assert "asap_exp.distill" in refused("train", "attention=asap")
    assert refusal("train", "attention.name=asap").key == "attention.name"
    with pytest.raises(UserError, match=r"attention=asap .*asap_exp\.compile fits it"):
        build_attention({"name": "asap"})


OLD = [
    ("train", old.replace("*", "digits"), new.format(option="digits"))
    for old, new in RENAMED["train"].items()
] + [("distill", "task.name=digits", "task=digits")]


@pytest.mark.parametrize(("stage", "old", "new"), OLD)
def test_argument_of_an_earlier_version_is_refused_with_the_new_one(stage, old, new):
    error = refusal(stage, old)
    assert error.hint == new
    assert str(error).startswith(f"{old} ")
    command = new.split(",")[0]
    if "=" in command:
        names_task = command.startswith(("task", "experiment"))
        assert compose(stage, [command], SCHEMAS[stage]) if names_task else composed(stage, command)


def test_experiment_of_another_stage_is_refused_with_its_command():
    assert (
        refusal("train", "experiment=pareto").hint == "python -m asap_exp.distill experiment=pareto"
    )
    assert "demo" in refusal("distill", "experiment=demo").hint
    assert "Did you mean pareto?" in refused("distill", "experiment=paretto")


def test_later_stage_takes_a_task_that_has_runs(tmp_path):
    (tmp_path / "results/runs/mine").mkdir(parents=True)
    where = f"paths.results={tmp_path / 'results'}"
    assert composed("distill", "task=mine", where).task.name == "mine"
    assert "task=mine is not allowed" in refused("distill", "task=mine")


def test_experiment_of_another_task_is_refused():
    for tasks_given in ("task=digits", "task=cifar,digits"):
        with pytest.raises(UserError) as error:
            check_overrides("train", [tasks_given, "experiment=cifar_plain"], TrainConfig)
        assert "experiment=cifar_plain is of task=cifar, not of task=digits" in str(error.value)
    assert composed("train", "task=cifar", "experiment=cifar_plain").task.name == "cifar"
    assert composed("train", "task=digits", "experiment=ablation_eps").task.name == "digits"


GROUPS = [
    (stage, folder.name)
    for stage in SCHEMAS
    for folder in (conf_dir() / stage).iterdir()
    if folder.is_dir() and folder.name not in ("data", "model")  # a task chooses these two
]


@pytest.mark.parametrize(
    ("stage", "key", "given"),
    [
        ("evaluate", "behaviour", ["task=digits"]),
        ("distill", "calibration.query_features", []),
        ("train", "trainer.compile", ["task=digits"]),
        ("train", "model.qk_norm", ["task=digits"]),
    ],
)
def test_a_number_is_neither_true_nor_false(stage: str, key: str, given: list[str]) -> None:
    """OmegaConf takes every other number than 0 for true."""
    for value in ("2", "-1", "0.5"):
        found = refused(stage, *given, f"{key}={value}")
        assert found.startswith(f"{key}={value} has the wrong type; it must be true or false")
    complete(stage, *given, f"{key}=1")


@pytest.mark.parametrize("stage", ["report", "benchmark"])
@pytest.mark.parametrize("override", ["logger=csv", "+logger=csv"])
def test_a_stage_without_a_tracker_says_so(stage: str, override: str) -> None:
    """Hydra would advise a plus sign, which helps nothing."""
    words = f"logger=csv is not an option of {stage}, which logs to no tracker; leave it out"
    assert refused(stage, override) == words


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize(("stage", "group"), [*GROUPS, ("train", "logger")])
def test_unknown_option_of_any_group_is_refused_with_the_nearest(stage, group, sweep):
    folder = conf_dir() / (COMMON if group == "logger" else stage) / group
    first, *others = sorted(file.stem for file in folder.glob("*.yaml"))
    misspelt = f"{first}x"
    given = f"{group}={first},{misspelt}" if sweep else f"{group}={misspelt}"
    with pytest.raises(UserError) as error:
        check_overrides(stage, [given], SCHEMAS[stage])
    assert (error.value.value, error.value.hint) == (misspelt, first)
    assert error.value.allowed == (first, *others)


@pytest.mark.parametrize("given", ["seed=0,1,0", "seed=choice(0,1,0)"])
def test_value_that_a_sweep_names_twice_is_refused(given):
    assert refused("train", given) == "seed=0,1,0 names 0 2 times; name each value once"
    assert check_overrides("train", ["seed=0,1"], SCHEMAS["train"])[0] == "++seed=0,1"


def test_option_without_its_group_is_refused_with_it():
    assert "Did you mean task=digits?" in refused("train", "digits")
    assert "Did you mean calibration=kl?" in refused("distill", "kl")
    assert refused("train", "nonsense") == "nonsense is not an argument: give KEY=VALUE"


def test_option_of_a_group_of_hydra_is_refused_with_the_nearest():
    error = refusal("train", "hydra/launcher=jobli")
    assert (error.key, error.hint) == ("hydra/launcher", "joblib")


def test_training_without_a_task_is_refused_with_those_there_are():
    with pytest.raises(UserError) as error:
        compose("train", [], TrainConfig)
    assert (error.value.key, error.value.allowed) == ("task", tuple(tasks()))


@pytest.mark.parametrize("stage", ["train", "distill", "report"])
def test_unknown_task_is_refused_with_those_there_are(stage):
    error = refusal(stage, "task=cifra")
    assert (error.hint, error.allowed) == ("cifar", tuple(tasks()))


@pytest.mark.parametrize("key", ["adaptive", "logits"])
def test_further_features_go_with_query_features(key):
    further = f"calibration.{key}=true"
    assert f"{further} needs calibration.query_features=true" in refused("distill", further)
    calibration = composed("distill", "calibration.query_features=true", further).calibration
    assert getattr(calibration, key)


def test_what_a_calibration_does_not_read_is_no_part_of_it():
    """Maps from before these settings existed keep their calibration's identity."""
    ridge = composed("distill").calibration
    assert not {"adaptive", "logits", "relaxed", "kl"} & set(ridge.identity())
    options = ("calibration=kl", "calibration.relaxed=true")
    assert "relaxed" not in composed("distill", *options).calibration.identity()
    refined = composed("distill", *options, "calibration.refine=1").calibration
    assert refined.identity()["relaxed"] is True


def test_a_budget_says_itself_how_often_a_map_may_refine():
    given = ("calibration=kl", "calibration.relaxed=true", "budget.accuracy_drop=1")
    config = composed("distill", *given, "budget.refine=[0,2]")
    assert config.calibration.refine == 0
    assert config.fitted.identity()["refine"] == 2
    assert config.fitted.identity()["relaxed"] is True
    never = composed("distill", *given, "calibration.refine=1", "budget.refine=[0]").fitted
    assert "relaxed" not in never.identity()


DATA_PATHS = ("data.root", "data.cache", "data.path")
HOME_PATHS = {
    "train": ("paths.results", "data.root", "data.cache", "resume", "init_from"),
    "distill": ("paths.results", *DATA_PATHS, "teacher"),
    "evaluate": ("paths.results", *DATA_PATHS, "teacher", "artifact"),
    "report": ("paths.results", "out", "published", "run"),
    "benchmark": ("paths.results", *DATA_PATHS, "teacher"),
}


@pytest.mark.parametrize(
    ("stage", "key"), [(stage, key) for stage, keys in HOME_PATHS.items() for key in keys]
)
def test_home_directory_in_every_path(stage, key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    tree = deepcopy(complete(stage))
    if key == "teacher" and stage == "benchmark":
        tree.inputs = "recorded"
    for given, expected in {
        "~": "/home/somebody",
        "~/a b": "/home/somebody/a b",
        "a~1": "a~1",
        "./~": "./~",
    }.items():
        OmegaConf.update(tree, key, given)
        values = dict(leaves(asdict(parse(tree, SCHEMAS[stage]))))
        assert values[key] == expected
    OmegaConf.update(tree, key, "~nobody-of-this-name/x")
    with pytest.raises(UserError, match=rf"{key}=~nobody-of-this-name/x: the home directory"):
        parse(tree, SCHEMAS[stage])


@pytest.mark.parametrize(
    ("stage", "key"), [(stage, key) for stage, keys in HOME_PATHS.items() for key in keys]
)
def test_empty_path_is_refused_also_before_hydra_makes_folders_of_it(stage, key):
    """Null stays what it is."""
    words = rf"^{key} is empty, as from a shell variable that is not set; give a path, or leave"
    for given in (f"{key}=", f"{key}=' '"):
        with pytest.raises(UserError, match=words):
            check_overrides(stage, [given], SCHEMAS[stage])
    tree = deepcopy(complete(stage))
    if key == "teacher" and stage == "benchmark":
        tree.inputs = "recorded"
    OmegaConf.update(tree, key, "")
    with pytest.raises(UserError, match=words):
        parse(tree, SCHEMAS[stage])
    if key not in ("paths.results", "resume"):
        OmegaConf.update(tree, key, None)
        parse(tree, SCHEMAS[stage])


def test_empty_path_of_own_data_is_refused():
    with pytest.raises(UserError, match=r"^data\.path is empty"):
        compose("train", ["task=images", "data.path="], TrainConfig)


def test_empty_path_that_a_run_has_saved_is_read(tmp_path):
    tree = deepcopy(complete("train"))
    tree.data.root = ""
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(tree))
    assert load_saved(tmp_path / "config.yaml", TrainConfig).data.root == ""


@pytest.mark.slow
def test_every_path_of_a_schema_is_marked():
    """Every key that holds a path is found by its name, including new ones."""
    for stage, schema in SCHEMAS.items():
        keys = [key for key, _ in leaves(asdict(composed(stage)))]
        marked = {k for k in keys if (found := field_of(schema, k)) and holds_path(found[1])}
        assert marked == set(HOME_PATHS[stage])


def test_home_directory_changes_no_identity(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    tree = deepcopy(complete("train"))
    plain = run_directory(parse(tree, TrainConfig))
    tree.data.root, tree.data.cache, tree.paths.results = "~/data", "~", "~/results"
    there = run_directory(parse(tree, TrainConfig))
    assert there.parts[-3:] == plain.parts[-3:]
    assert str(there).startswith("/home/somebody/results/runs/digits/")


def test_sweep_goes_below_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    with hydra.initialize_config_dir(str(conf_dir() / "train"), version_base="1.3"):
        found = hydra.compose(
            "train", ["task=digits", "paths.results='~/x'"], return_hydra_config=True
        )
    assert found.hydra.sweep.dir.startswith("/home/somebody/x/runs/.multirun/2")


@pytest.mark.parametrize("value", ["~/x", "a=b", "a (2)", "Größe", "a,b", "[", "it's", "a\\", "{x"])
def test_bugs_row_27_value_that_needs_quotes_is_refused_with_them(value):
    quotes = quoted("paths.results", value)
    if value not in ("a,b", "it's", "a\\"):  # read, though not as meant
        message = refused("report", f"paths.results={value}")
        assert message.startswith(f"paths.results={value} cannot be read")
        assert message.endswith(f'"{quotes}"')
    (override,) = OverridesParser.create().parse_overrides([quotes])
    assert override.value() == value


def test_keys_of_hydra_pass():
    assert check_overrides("train", ["hydra.verbose=true"], TrainConfig) == ["hydra.verbose=true"]


# Words of each error message.
ABSURD = {
    "train": {
        "~attention.name": "attention.name=None is not allowed; choose one of",
        "recipe=null": "recipe is missing; it must be a group of the keys",
        "attention=null": "attention=null is not allowed; choose one of coarse",
        "model=null": "model=null is not allowed; choose one of encoder, vit",
        "hydra=null": "hydra=null is not allowed",
        "attention=[1]": "attention=[1] is not allowed",
        "~model": "model.name=None is not allowed; choose one of vit, encoder",
        "~recipe": "recipe must be set",
        "paths=null": "paths is missing; it must be a group of the keys results",
        "logger.tags=[null]": "logger.tags[0] is missing; it must be text",
        f"seed={'9' * 5000}": "cannot be read",
        "~task": "task must be set",
    },
    "distill": {
        "calibration=null": "calibration=null is not allowed; choose one of coarse, end_to_end",
        "calibration.kl=null": "calibration.kl is missing; it must be a group of the keys updates",
    },
    "evaluate": {"truncations=[null]": "truncations[0] is missing; it must be a whole number"},
}


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [(stage, *case) for stage, cases in ABSURD.items() for case in cases.items()],
    ids=lambda text: text[:30],
)
def test_what_is_left_out_or_null_is_a_sentence(stage, override, words):
    assert words in refused(stage, override)


TOO_LARGE = {
    "train": {
        "trainer.cpu_threads": "at most 1024",
        "model.dim": "at most 1000000",
        "model.depth": "at most 10000",
        "model.mlp_ratio": "at most 1000",
        "recipe.epochs": "at most 1000000",
        "recipe.lr": "at most 1e+30",
        "recipe.weight_decay": "at most 1e+30",
        "attention.num_iters": "at most 1000000",
    },
    "distill": {
        "calibration.slices": "at most 100000",
        "calibration.candidates": "at most 1000000",
        "calibration.refine": "at most 1000000",
        "calibration.kl.updates": "at most 10000000",
        "calibration.kl.lr": "at most 1e+30",
        "budget.latency.rounds": "at most 1000000",
    },
    "evaluate": {"latency.rounds": "at most 1000000"},
    "benchmark": {"cpu.rounds": "at most 1000000"},
}


@pytest.mark.parametrize(
    ("stage", "key", "allowed"),
    [(stage, *case) for stage, cases in TOO_LARGE.items() for case in cases.items()],
)
def test_value_without_end_is_refused_with_the_bound(stage, key, allowed):
    bound = float(allowed.split()[-1])
    whole = not key.endswith(("lr", "decay", "mlp_ratio"))
    for value in (bound + 1, 1e19, 10**40) if whole else (bound * 1.01, 1e38):
        value = int(value) if whole else float(value)
        tree = OmegaConf.merge(complete(stage), {})
        OmegaConf.update(tree, key, value)
        if key == "calibration.slices":
            tree.calibration.candidates = value
        with pytest.raises(UserError) as error:
            parse(tree, SCHEMAS[stage])
        assert str(error.value) == f"{key}={value} is not allowed; it must be {allowed}"
    OmegaConf.update(tree, key, int(bound) if whole else bound)
    if key == "calibration.slices":
        tree.calibration.candidates = int(bound)
    parse(tree, SCHEMAS[stage])


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("train", "recipe.batch_size", 2**63),
        ("train", "data.batch_tokens", 10**100),
        ("train", "attention.eps", float("inf")),
        ("train", "attention.eps", float("nan")),
        ("train", "recipe.clip_norm", 1e300),
        ("distill", "calibration.memory_mib", 2**63),
        ("distill", "calibration.samples", 10**25),
        ("evaluate", "max_test_rows", 2**64),
        ("benchmark", "cpu.tokens", 2**64 * 64),
    ],
)
def test_number_beyond_64_bits_or_not_finite_is_refused(stage, key, value):
    text = key == "data.batch_tokens"
    tree = OmegaConf.merge(complete(stage, *(["task=imdb"] if text else [])), {})
    OmegaConf.update(tree, key, value)
    with pytest.raises(UserError) as error:
        parse(tree, SCHEMAS[stage])
    assert re.match(
        re.escape(f"{key}={value} is not allowed; it must be ") + r"(at least|above|at most) -?\d",
        str(error.value),
    )


@pytest.mark.parametrize("name", ["", "*", "..", "../..", "/elsewhere", "a\nb", "a b"])
@pytest.mark.parametrize("stage", SCHEMAS)
def test_task_that_is_no_plain_name_is_refused(stage, name):
    tree = OmegaConf.merge(complete(stage), {"task": {"name": name}})
    with pytest.raises(UserError, match=r"task=.* must be a plain name"):
        parse(tree, SCHEMAS[stage])


def test_training_needs_the_name_of_a_task():
    tree = OmegaConf.merge(complete("train"), {"task": {"name": None}})
    with pytest.raises(UserError, match=r"task=None is not allowed"):
        parse(tree, TrainConfig)
    assert parse(OmegaConf.merge(complete("distill"), {"task": {"name": None}}), DistillConfig)


SECRET = "s3cr3t-of-this-machine"


@pytest.mark.parametrize(
    "place",
    [
        {"task": {"name": "${oc.env:TOKEN}"}},
        {"logger": {"tags": ["${oc.env:TOKEN}"]}},
        {"paths": {"results": "${seed}"}},
        {"attention": {"eps": "${ oc.env:TOKEN,x}"}},
    ],
)
def test_saved_configuration_is_not_looked_up(tmp_path, monkeypatch, place):
    monkeypatch.setenv("TOKEN", SECRET)
    saved = OmegaConf.merge(complete("train"), place)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(saved))
    with pytest.raises(UserError, match=r"config\.yaml is not as it was saved: .*=\$\{") as error:
        load_saved(tmp_path / "config.yaml", TrainConfig)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logger.project", "${oc.env:TOKEN}"),
        ("logger.entity", "x-${oc.env:TOKEN}"),
        ("logger.tags", ["a", "${oc.env:TOKEN}"]),
        ("task.name", "${ oc.env:TOKEN}"),
        ("attention.backend", "${oc.env:TOKEN}"),
        ("model.name", "${oc.decode:${oc.env:TOKEN}}"),
    ],
)
def test_variable_as_a_text_is_refused_without_its_value(monkeypatch, key, value):
    monkeypatch.setenv("TOKEN", SECRET)
    tree = OmegaConf.merge(complete("train"), {})
    OmegaConf.update(tree, key, value, force_add=True)
    with pytest.raises(UserError) as error:
        parse(tree, TrainConfig)
    assert SECRET not in str(error.value)


def test_variable_may_be_a_path_or_a_number(monkeypatch):
    monkeypatch.setenv("PLACE", "/scratch")
    monkeypatch.setenv("ARRAY_TASK", "7")
    monkeypatch.setenv("TOKEN", SECRET)
    tree = OmegaConf.merge(
        complete("train"),
        {"paths": {"results": "${oc.env:PLACE}/r"}, "seed": "${oc.env:ARRAY_TASK}"},
    )
    found = parse(tree, TrainConfig)
    assert (found.paths.results, found.seed) == ("/scratch/r", 7)
    tree.seed = "${oc.env:TOKEN}"
    with pytest.raises(UserError) as error:
        parse(tree, TrainConfig)
    assert str(error.value) == "seed=${oc.env:TOKEN} has the wrong type; it must be a whole number"


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"- a\n", b"", b"a: [", b"a: {b: *c}", b"!!python/object:os.x {}"]
)
def test_saved_configuration_that_is_none_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError):
        load_saved(tmp_path / "config.yaml", TrainConfig)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder\.yaml is a folder"):
        load_saved(tmp_path / "folder.yaml", TrainConfig)


@pytest.mark.parametrize(
    ("stage", "schema", "override", "words"),
    [
        ("distill", DistillConfig, "calibration.ridge=1e10", "at most 1000000000.0"),
        ("distill", DistillConfig, "budget.latency_ratio=1e10", "at most 1000000000.0"),
        ("train", TrainConfig, "attention.eps=1e10", "at most 1000000000.0"),
        (
            "train",
            TrainConfig,
            "trainer.limit_train_batches=99999999999999999999",
            "must be at most 9223372036854775807",
        ),
    ],
)
def test_numbers_too_large_are_refused_before_anything_runs(
    stage: str, schema: type, override: str, words: str
) -> None:
    with pytest.raises(UserError, match=rf"{override.split('=')[0]}=.*{words}"):
        compose(stage, [override, *(["task=digits"] if stage == "train" else [])], schema)


def test_the_largest_settings_can_be_read_again() -> None:
    assert LARGEST_SETTING <= LARGEST
    assert LARGEST_RATE <= LARGEST


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("seed=1,2", " (a list is written [1,2])"),
        ("+seed=1,2", " (a list is written [1,2])"),
        ("attention=softmax,sinkhorn", " (a list is written [softmax,sinkhorn])"),
        ("seed=range(1,3)", ""),
        ("seed=choice(1,2)", ""),
    ],
)
def test_several_values_without_a_sweep_are_refused_with_its_flag(given, words):
    found = given.lstrip("+")
    assert refused("train", "task=digits", given) == (
        f"{found} has several values: add -m, to run the command once for each{words}"
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--epochs 3", "recipe.epochs=3"),
        ("--epochs=3", "recipe.epochs=3"),
        ("--recipe.epochs 3", "recipe.epochs=3"),
        ("--batch-size 3 task=digits", "recipe.batch_size=3"),
        ("--epoch 3", "recipe.epochs=3"),
        ("--task digits", "task=digits"),
        ("--epochs", "recipe.epochs=VALUE"),
        ("--epochs task=digits", "recipe.epochs=VALUE"),
        ("--nonsense-of-mine 3", None),
        ("epochs 3", "recipe.epochs=3"),
        ("recipe.epochs 3 task=digits", "recipe.epochs=3"),
        ("task digits", "task=digits"),
    ],
)
def test_setting_in_another_form_is_refused_with_the_key(words, meant):
    with pytest.raises(UserError) as error:
        flags.parsed("train", words.split(), TrainConfig)
    hint = f". Did you mean {meant}?" if meant else ""
    typed = words.removesuffix(" task=digits")
    assert str(error.value) == f"{typed} is not an argument: settings are KEY=VALUE{hint}"


@pytest.mark.parametrize("words", ["mine 3", "epoch 3", "--config-dir task --info all"])
def test_other_words_are_left_to_the_checks_of_settings(words):
    flags.parsed("train", words.split(), TrainConfig)


def test_flags_of_hydra_pass_and_its_refusals_are_a_sentence():
    given = flags.parsed("train", ["task=digits", "--cfg", "job", "--multi"], TrainConfig)
    assert (given.overrides, given.cfg, given.multirun) == (["task=digits"], "job", True)
    for words in (["--config", "x"], ["-x"], ["--cfg", "jobs"]):
        with pytest.raises(UserError, match="; settings are KEY=VALUE, and --hydra-help lists"):
            flags.parsed("train", words, TrainConfig)
