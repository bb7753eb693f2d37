"""Initialisation from another run's weights without its head, or an error about differences."""

from pathlib import Path

import pytest
import torch

from asap_exp.core.errors import UserError
from asap_exp.core.runs import recipe_hash
from asap_exp.core.tensors import load_tensors
from asap_exp.models import build_net
from asap_exp.models.init_from import initial_run, initialise
from tests.conftest import Pipeline
from tests.stages import run_train, train_config

pytestmark = pytest.mark.slow


def test_every_weight_but_the_head_s_is_copied(shared_pipeline: Pipeline) -> None:
    net = build_net(train_config(Path("unused")))
    fresh = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    initialise(net, shared_pipeline.teacher)
    saved = load_tensors(shared_pipeline.teacher.weights)
    for name, tensor in net.state_dict().items():
        source = fresh if name.startswith("head.") else saved
        assert torch.equal(tensor, source[name]), name
    assert not torch.equal(saved["head.weight"], fresh["head.weight"])


def test_positions_of_more_patches_lie_between_those_of_fewer(
    shared_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position embeddings that rise evenly from left to right still do, half as steeply."""
    saved = load_tensors(shared_pipeline.teacher.weights)
    side = int(saved["pos_embed"].shape[1] ** 0.5)
    ramp = torch.arange(side, dtype=torch.float32).expand(side, side).reshape(1, -1, 1)
    weights = {**saved, "pos_embed": ramp.expand_as(saved["pos_embed"]).contiguous()}
    monkeypatch.setattr("asap_exp.models.init_from.load_weights", lambda run: dict(weights))
    net = build_net(train_config(Path("unused"), "data.image_size=16"))
    initialise(net, shared_pipeline.teacher)
    found = net.pos_embed.detach().reshape(2 * side, 2 * side, -1)
    expected = torch.arange(2 * side) / 2 - 0.25
    inner = slice(side // 2, -side // 2)
    torch.testing.assert_close(
        found[:, inner], expected[inner, None].expand_as(found[:, inner]), atol=0.1, rtol=0
    )
    assert torch.equal(net.blocks[0].attn.qkv.weight, saved["blocks.0.attn.qkv.weight"])


def test_run_starts_where_the_other_ended_and_its_record_says_so(
    tmp_path: Path, shared_pipeline: Pipeline
) -> None:
    path = shared_pipeline.teacher.path
    run = run_train(tmp_path, f"init_from={path}", "recipe.epochs=2")
    assert run.config.init_from == shared_pipeline.teacher.name, "no folder of one machine"
    assert run.manifest.initial.teacher_sha256 == (shared_pipeline.teacher.manifest.teacher_sha256)
    fresh = run_train(tmp_path, "recipe.epochs=2")
    assert fresh.path != run.path
    assert fresh.manifest.initial is None
    assert run.manifest.best_val_accuracy > fresh.manifest.best_val_accuracy


def test_run_is_found_by_its_name(pipeline: Pipeline) -> None:
    config = train_config(pipeline.results, f"init_from={pipeline.teacher.name}")
    found = initial_run(config)
    assert found is not None
    assert found.path == pipeline.teacher.path


def test_fresh_weights_leave_no_trace_in_the_recipe(shared_pipeline: Pipeline) -> None:
    config = train_config(Path("unused"))
    teacher, softmax = shared_pipeline.teacher, shared_pipeline.softmax
    assert len({recipe_hash(config), recipe_hash(config, teacher)}) == 2
    # A matched baseline may start from the matched baseline of the initial run.
    twin = train_config(Path("unused"), attention=("attention=softmax",))
    assert recipe_hash(config, teacher) == recipe_hash(twin, softmax)
    assert recipe_hash(config, teacher) != recipe_hash(config, softmax)


def test_other_model_is_refused_with_what_differs(
    tmp_path: Path, shared_pipeline: Pipeline
) -> None:
    path = shared_pipeline.teacher.path
    with pytest.raises(UserError) as error:
        run_train(tmp_path, f"init_from={path}", "model.dim=32")
    assert "blocks.0.attn.proj.weight: there (16, 16), here (32, 32)" in str(error.value)
    with pytest.raises(UserError, match=r"blocks\.2\.attn\.proj\.weight: there None, here"):
        run_train(tmp_path, f"init_from={path}", "model.depth=3")
    assert not (tmp_path / "runs").exists()


def test_run_that_is_not_there_or_not_finished_is_refused(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        run_train(tmp_path, "init_from=nowhere")
    pipeline.teacher.weights.unlink()
    with pytest.raises(UserError, match="is not a finished run"):
        run_train(tmp_path, f"init_from={pipeline.teacher.path}")
