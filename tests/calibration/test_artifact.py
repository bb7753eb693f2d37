"""The artifact: whole or refused, and refused by a model whose teacher is another."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from asap_exp.attention import SinkhornAttention
from asap_exp.calibration.artifact import (
    Artifact,
    check_belongs,
    load_artifact,
    load_fidelity,
    save_artifact,
    teacher_layers,
)
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.models import load_net
from tests.conftest import Pipeline
from tests.stages import run_distill, run_evaluate, run_train


def test_identity_names_teacher_layers_and_calibration_set(shared_pipeline: Pipeline) -> None:
    artifact = load_artifact(shared_pipeline.artifact)
    identity = artifact.identity
    assert identity["teacher_sha256"] == shared_pipeline.teacher.manifest.teacher_sha256
    assert identity["layers"] == ["blocks.0.attn", "blocks.1.attn"]
    assert (identity["num_iters"], identity["eps"]) == (4, 1.0)
    assert (identity["heads"], identity["head_dim"], identity["slices"]) == (2, 8, 3)
    assert identity["calibration_set"]["rows"] == 32
    assert identity["calibration_set"]["task"] == "digits"
    assert artifact.tensors["blocks.1.attn.theta"].shape == (2, 3, 8)
    assert artifact.tensors["blocks.1.attn.weight"].shape == (2, 3)


def test_finished_map_is_not_made_again(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (pipeline.artifact / "manifest.json").read_bytes()
    assert run_distill(pipeline.results) == pipeline.artifact
    assert "Already compiled" in capsys.readouterr().out
    assert (pipeline.artifact / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_same_calibration_gives_the_same_tensors(pipeline: Pipeline) -> None:
    before = load_artifact(pipeline.artifact).identity["tensors_sha256"]
    shutil.rmtree(pipeline.artifact)
    assert load_artifact(run_distill(pipeline.results)).identity["tensors_sha256"] == before
    other = run_distill(pipeline.results, "calibration.seed=1")
    assert other != pipeline.artifact
    assert load_artifact(other).identity["tensors_sha256"] != before


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_tensors_are_refused(pipeline: Pipeline, content: bytes | None) -> None:
    file = pipeline.artifact / "asap.safetensors"
    file.write_bytes(file.read_bytes()[:-8] if content is None else content)
    with pytest.raises(UserError, match=r"asap\.safetensors is damaged"):
        load_artifact(pipeline.artifact)


def test_damaged_identity_is_refused(pipeline: Pipeline) -> None:
    (pipeline.artifact / "asap.json").write_text('{"format": 1, "lay')
    with pytest.raises(UserError, match=r"asap\.json is damaged"):
        run_evaluate(pipeline.results)


@pytest.mark.parametrize("content", ["[]", "null", '{"format": 1}'])
def test_identity_of_another_format_is_refused(pipeline: Pipeline, content: str) -> None:
    (pipeline.artifact / "asap.json").write_text(content)
    with pytest.raises(UserError, match=r"asap\.json has format (None|1); this version reads 2"):
        load_artifact(pipeline.artifact)


@pytest.mark.slow
def test_tensors_of_another_artifact_are_refused(pipeline: Pipeline) -> None:
    other = run_distill(pipeline.results, "calibration.seed=1")
    (other / "asap.safetensors").write_bytes((pipeline.artifact / "asap.safetensors").read_bytes())
    with pytest.raises(UserError, match="is not the file that"):
        load_artifact(other)


@pytest.mark.slow
def test_artifact_of_another_teacher_is_refused_with_what_differs(pipeline: Pipeline) -> None:
    other = run_train(pipeline.results, attention=("attention=sinkhorn", "attention.num_iters=3"))
    with pytest.raises(UserError, match=r"another teacher:(.|\n)*num_iters: the artifact's 4"):
        run_evaluate(pipeline.results, f"artifact={pipeline.artifact}", f"teacher={other.path}")


def test_changed_weights_of_the_teacher_are_refused(pipeline: Pipeline) -> None:
    from asap_exp.core.tensors import load_tensors, save_tensors

    weights = load_tensors(pipeline.teacher.weights)
    weights["head.bias"] = weights["head.bias"] + 1
    save_tensors(pipeline.teacher.weights, weights)
    with pytest.raises(UserError, match="does not hold the weights that"):
        run_evaluate(pipeline.results)


def test_fidelity_report_has_a_row_for_every_layer_and_head(shared_pipeline: Pipeline) -> None:
    rows = read_json(shared_pipeline.artifact / "fidelity.json")
    assert [(row["layer"], row["head"]) for row in rows] == [
        (f"blocks.{layer}.attn", head) for layer in (0, 1) for head in (0, 1)
    ]
    for row in rows:
        assert 0 < row["r_squared"] <= 1
        assert row["condition_number"] >= 1
        assert 0 < row["l1_row_distance"] < 2
        assert row["column_error"] > 0
    json.dumps(rows, allow_nan=False)


@pytest.mark.slow
def test_query_features_join_the_map(pipeline: Pipeline) -> None:
    folder = run_distill(pipeline.results, "calibration.query_features=true")
    artifact = load_artifact(folder)
    assert artifact.tensors["blocks.0.attn.query_weight"].shape == (2, 9)
    with_features = read_json(folder / "fidelity.json")
    without = read_json(pipeline.artifact / "fidelity.json")
    assert all(a["r_squared"] > b["r_squared"] for a, b in zip(with_features, without, strict=True))


@pytest.mark.slow
def test_every_kind_of_weight_is_kept(pipeline: Pipeline) -> None:
    folder = run_distill(
        pipeline.results,
        "calibration.steps=[ridge,kl]",
        "calibration.kl.updates=3",
        "calibration.query_features=true",
        "calibration.adaptive=true",
        "calibration.logits=true",
        "calibration.refine=1",
        "calibration.relaxed=true",
    )
    artifact = load_artifact(folder)
    path = "blocks.0.attn"
    attend, zero = artifact.attention(path), artifact.zero_weights(path)
    control = artifact.query_features_only(path)
    for name in ("query_weight", "adaptive_weight", "logit_weight", "relaxation"):
        kept = artifact.tensors[f"{path}.{name}"]
        assert torch.equal(getattr(attend, name), kept)
        assert kept.any()
        assert getattr(zero, name).any() == (name == "relaxation")
    assert torch.equal(zero.relaxation, attend.relaxation)
    assert torch.equal(control.relaxation, artifact.tensors[f"{path}.query_only_relaxation"])
    assert control.logit_weight is None


def test_compiled_attention_runs_what_was_fitted(shared_pipeline: Pipeline) -> None:
    artifact = load_artifact(shared_pipeline.artifact)
    attend = artifact.attention("blocks.0.attn")
    assert torch.equal(attend.weight, artifact.tensors["blocks.0.attn.weight"])
    zero = artifact.zero_weights("blocks.0.attn")
    assert not zero.weight.any()
    assert artifact.tensors["blocks.0.attn.weight"].any(), "the control must not change the map"
    assert artifact.query_features_only("blocks.0.attn").theta.shape == (2, 0, 8)


COMMAND = "python -m asap_exp.distill task=digits 'teacher=a folder'"


def damage(file: Path, kind: str) -> None:
    content = file.read_bytes()
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-20] if kind == "truncated" else content.replace(b"0", b"1"))


@pytest.mark.parametrize("kind", ["missing", "truncated", "edited"])
@pytest.mark.parametrize("name", ["asap.safetensors", "asap.json", "fidelity.json"])
@pytest.mark.parametrize("command", [COMMAND, "python demo.py", None])
def test_a_damaged_map_names_the_command_that_makes_it_again(
    pipeline: Pipeline, name: str, kind: str, command: str | None
) -> None:
    manifest = pipeline.artifact / "manifest.json"
    write_json(manifest, {**read_json(manifest), "command": command})
    if command is None:
        manifest.unlink()
    damage(pipeline.artifact / name, kind)
    with pytest.raises(UserError, match=name) as refused:
        load_fidelity(pipeline.artifact, load_artifact(pipeline.artifact))
    generic = f"python -m asap_exp.distill teacher={pipeline.teacher.path}"
    told = command if command == COMMAND else generic
    assert str(refused.value).endswith(f". It is made again by: {told}")


def test_a_map_of_a_newer_version_is_no_damage(pipeline: Pipeline) -> None:
    file = pipeline.artifact / "asap.json"
    write_json(file, {**read_json(file), "format": 3})
    with pytest.raises(UserError, match=r"asap\.json is of a newer version .*; update asap_exp$"):
        load_artifact(pipeline.artifact)


def test_what_is_being_written_is_not_called_damaged(
    shared_pipeline: Pipeline, tmp_path: Path
) -> None:
    artifact = load_artifact(shared_pipeline.artifact)
    calibration = {**artifact.identity["calibration"], "ridge": -1.0}
    wrong = Artifact({**artifact.identity, "calibration": calibration}, artifact.tensors)
    with pytest.raises(
        UserError, match=r"asap\.json is not written.*calibration\.ridge"
    ) as refused:
        save_artifact(tmp_path, wrong)
    assert "damaged" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_map_older_than_an_option_of_its_teacher_still_belongs(shared_pipeline: Pipeline) -> None:
    """Options that are new, at their defaults, are not written, and not missed."""
    artifact = load_artifact(shared_pipeline.artifact)
    net = load_net(shared_pipeline.teacher)
    teacher = {"teacher_layers": teacher_layers(net)}
    younger = SinkhornAttention.younger_options
    assert "gradient_updates" in younger
    for layer in artifact.identity["teacher_layers"].values():
        assert not set(younger) & layer["attention"].keys()
    check_belongs(artifact, teacher, shared_pipeline.artifact)
    for value, other in ((None, False), (2, True)):
        identity = deepcopy(artifact.identity)
        for layer in identity["teacher_layers"].values():
            layer["attention"]["gradient_updates"] = value
        written = Artifact(identity, artifact.tensors)
        if other:
            with pytest.raises(UserError, match="was fitted to another teacher"):
                check_belongs(written, teacher, shared_pipeline.artifact)
        else:
            check_belongs(written, teacher, shared_pipeline.artifact)
