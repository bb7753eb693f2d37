"""Which layers are compiled, and which teacher is taken."""

from dataclasses import replace

import pytest

from asap_exp.attention import AsapAttention, MultiHeadAttention, swap_attention
from asap_exp.calibration.artifact import load_artifact
from asap_exp.core.config import LayerConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import short_hash
from asap_exp.data import sources
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import artifact_key, chosen_layers
from asap_exp.models import load_net
from tests.composed import composed
from tests.conftest import Pipeline
from tests.stages import run_distill

PATHS = ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (LayerConfig("frozen"), PATHS),
        (LayerConfig("all"), PATHS),
        (LayerConfig("first"), PATHS[:1]),
        (LayerConfig("last"), PATHS[2:]),
        (LayerConfig("index", 1), PATHS[1:2]),
    ],
)
def test_chosen_layers(layer: LayerConfig, expected: list[str]) -> None:
    assert chosen_layers(layer, PATHS) == expected


def test_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"layer\.index=3 is not there.*0 to 2"):
        chosen_layers(LayerConfig("index", 3), PATHS)


@pytest.mark.slow
def test_frozen_is_the_behaviour_without_a_layer(pipeline: Pipeline) -> None:
    assert run_distill(pipeline.results, "+layer=frozen") == pipeline.artifact
    assert run_distill(pipeline.results, "+layer=all") == pipeline.artifact
    last = run_distill(pipeline.results, "+layer=last")
    assert load_artifact(last).layers == ["blocks.1.attn"]


@pytest.mark.slow
def test_one_layer_alone_gets_the_same_fit_as_among_all(pipeline: Pipeline) -> None:
    """The frozen-layer setting: every layer is fitted on the teacher's own activations."""
    alone = load_artifact(run_distill(pipeline.results, "+layer=index", "layer.index=1"))
    among = load_artifact(pipeline.artifact)
    for name, tensor in alone.tensors.items():
        assert tensor.equal(among.tensors[name])


def test_swapping_the_compiled_layers_keeps_every_other_weight(shared_pipeline: Pipeline) -> None:
    net = load_net(shared_pipeline.teacher)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    artifact = load_artifact(shared_pipeline.artifact)
    swap_attention(net, {path: artifact.attention(path) for path in artifact.layers})
    after = net.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    attends = [m.attend for m in net.modules() if isinstance(m, MultiHeadAttention)]
    assert all(isinstance(attend, AsapAttention) for attend in attends)


def test_map_of_much_data_is_checked_on_as_many_samples_as_published_ones() -> None:
    """And its folder has the name that it had when this number was the default."""
    config = composed("distill", [], DistillConfig)
    assert config.calibration.holdout is None
    assert config.calibration.held_out_of(1024) == 256
    assert [config.calibration.held_out_of(n) for n in (1023, 35, 3)] == [255, 8, 1]
    given = replace(config, calibration=replace(config.calibration, holdout=256))
    assert artifact_key(config, PATHS) == artifact_key(given, PATHS)
    assert short_hash(artifact_key(given, PATHS)) == "79a3f564"


def test_holdout_that_leaves_nothing_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match=r"calibration\.holdout=5000 leaves nothing to fit on"):
        run_distill(pipeline.results, "calibration.holdout=5000")


def test_other_training_images_are_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = sources.digits

    def reordered(split: str) -> sources.Images:
        images = digits(split)
        return sources.Images(images.pixels.flip(0), images.labels.flip(0), images.source)

    monkeypatch.setattr(sources, "digits", reordered)
    with pytest.raises(UserError, match=r"are not those that .* was trained on .*data\.root"):
        run_distill(pipeline.results)


def test_softmax_run_cannot_be_distilled(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="attention=softmax; only a Sinkhorn teacher"):
        run_distill(pipeline.results, f"teacher={pipeline.softmax.path}")


def test_teacher_of_another_task_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="trained on task digits, but task=cifar"):
        run_distill(pipeline.results, "task=cifar", f"teacher={pipeline.teacher.path}")


def test_no_teacher_gives_the_command_that_makes_one(pipeline: Pipeline) -> None:
    with pytest.raises(
        UserError, match=r"of task cifar in .*asap_exp\.train paths\.results=\S+ task=cifar"
    ):
        run_distill(pipeline.results, "task=cifar")
