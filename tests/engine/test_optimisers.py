"""Optimisers and schedules of timm, and which parameters are decayed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from asap_exp.core.composing import compose
from asap_exp.core.config import OPTIMIZERS, SCHEDULES, TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.engine.checkpoints import load_checkpoint
from asap_exp.engine.optimisers import build_optimizer, build_schedule, decay_groups
from asap_exp.models import build_net
from tests.stages import TINY_TEXT, run_train, train_config


def decayed(net: nn.Module, recipe: Any) -> set[str]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = decay_groups(net, recipe)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(names)
    return {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}


@pytest.mark.parametrize("text", [False, True], ids=["images", "texts"])
def test_matrices_are_decayed_and_position_embeddings_are_not(text: bool) -> None:
    options = ("task=agnews",) if text else ()
    config = train_config(Path("unused"), *options, **({"tiny": TINY_TEXT} if text else {}))
    net, recipe = build_net(config), config.recipe
    assert recipe.no_decay == "timm"
    positions = "positions.table" if text else "pos_embed"
    found = decayed(net, recipe)
    assert all(dict(net.named_parameters())[name].ndim > 1 for name in found)
    assert {"blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"} <= found
    recipe.no_decay = "vectors"
    assert decayed(net, recipe) - found == {positions}
    assert found <= decayed(net, recipe)


def test_list_of_optimisers_is_timms() -> None:
    other_packages_or_second_derivatives = ("bnb*", "fused*", "*hessian")
    assert set(OPTIMIZERS) == set(
        list_optimizers(exclude_filters=other_packages_or_second_derivatives)
    )


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return build_net(train_config(Path("unused")))


COMPILED = ("kron", "kronc", "kronw")
"""Optimisers of which timm compiles parts."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in COMPILED)) for name in OPTIMIZERS],
)
def test_every_optimiser_steps(net: nn.Module, name: str) -> None:
    recipe = replace(train_config(Path("unused")).recipe, optimizer=name, lr=1e-4)
    optimizer = build_optimizer(net, recipe)
    nn.functional.cross_entropy(net(torch.randn(2, 1, 8, 8)), torch.tensor([1, 2])).backward()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for _ in range(2):  # the first step of some only begins their averages
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_options_reach_the_optimiser(net: nn.Module) -> None:
    def built(*overrides: str) -> dict[str, Any]:
        recipe = train_config(Path("unused"), *overrides).recipe
        return build_optimizer(net, recipe).param_groups[0]

    assert built("recipe.optimizer_options={betas: [0.8, 0.9]}")["betas"] == (0.8, 0.9)
    sgd = built("recipe.optimizer=sgd", "recipe.optimizer_options={momentum: 0.5}", "recipe.lr=0.1")
    assert (sgd["momentum"], sgd["lr"]) == (0.5, 0.1)
    for name in ("adamw", "sgd"):
        with pytest.raises(UserError, match=rf"recipe\.optimizer={name} with .*'momentun'"):
            built(f"recipe.optimizer={name}", "recipe.optimizer_options={momentun: 0.5}")


def test_wrong_names_are_refused_with_what_was_meant() -> None:
    for override, meant in {
        "recipe.optimizer=AdamW": "adamw",
        "recipe.schedule=cosin": "cosine",
    }.items():
        with pytest.raises(UserError, match=f"Did you mean {meant}"):
            compose("train", ["task=digits", override], TrainConfig)
    for override, words in {
        "recipe.schedule_options={decay_rate: 1}": "cosine has recipe.warmup_epochs and",
        "recipe.optimizer_options=3": "must be a group of keys",
    }.items():
        with pytest.raises(UserError, match=words):
            compose("train", ["task=digits", override], TrainConfig)
    drop = ["recipe.lr_drop_epoch=2", "recipe.schedule=poly"]
    with pytest.raises(UserError, match="takes the place of a schedule"):
        compose("train", ["task=agnews", *drop], TrainConfig)


def rates(*overrides: str, steps: int = 40) -> list[float]:
    """Return the learning rate of each step of a run of 4 epochs, one of them warm-up."""
    given = ("recipe.epochs=4", "recipe.warmup_epochs=1", "recipe.lr=0.1", *overrides)
    recipe = train_config(Path("unused"), *given).recipe
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = build_schedule(optimizer, recipe, steps=steps)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if hasattr(schedule, "step_update"):
            schedule.step_update(step + 1)
        else:
            schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_to_the_rate_and_does_not_exceed_it(name: str) -> None:
    options = ("recipe.schedule_options={decay_milestones: [2]}",) if name == "multistep" else ()
    found = rates(f"recipe.schedule={name}", *options)
    assert found[0] < 0.02
    assert found[:10] == sorted(found[:10])
    assert max(found) <= 0.1 + 1e-9
    assert max(found) > 0.08
    if name not in ("constant", "step"):
        assert found[-1] < 0.02
    assert min(found) >= 0.001 - 1e-9


def test_options_reach_the_schedule() -> None:
    found = rates(
        "recipe.schedule=step", "recipe.schedule_options={decay_epochs: 2, decay_rate: 0.5}"
    )
    assert found[15] == pytest.approx(0.1)
    assert found[25] == pytest.approx(0.05)
    with pytest.raises(UserError, match=r"recipe\.schedule=step with .*'decay'"):
        rates("recipe.schedule=step", "recipe.schedule_options={decay: 2}")
    for option in ("step_on_epochs: true", "updates_per_epoch: 3"):
        with pytest.raises(UserError, match=f"{option.split(':')[0]} is refused: .*every update"):
            rates("recipe.schedule=step", f"recipe.schedule_options={{{option}}}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("recipe.schedule=poly", "recipe.optimizer=nadamw"),
        ("recipe.schedule=wsd", "recipe.optimizer=muon", "recipe.lr=1e-3"),
        ("recipe.schedule=multistep", "recipe.schedule_options={decay_milestones: [1]}"),
    ],
    ids=["poly", "wsd", "multistep"],
)
def test_resumed_run_has_the_state_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    from tests.train.test_resume import Killed, interrupt_at

    whole = run_train(tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=2)
        with pytest.raises(Killed):
            run_train(tmp_path / "parts", *options)
    again = run_train(tmp_path / "parts", *options)
    assert again.manifest.resumed_from == "last.ckpt"
    assert again.manifest.teacher_sha256 == whole.manifest.teacher_sha256
    one, other = (load_checkpoint(run.checkpoint)["lr_schedulers"] for run in (whole, again))
    assert one == other
