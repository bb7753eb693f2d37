"""What asap.json says of a map: believed only where it is whole and of one piece."""

from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest

from asap_exp.calibration.artifact import load_artifact
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.sealed import SEAL, write_sealed
from tests.conftest import Pipeline
from tests.stages import run_evaluate

PATH = "blocks.0.attn"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.pop("calibration"), "calibration: Field required"),
        (lambda x: x.update(calibration=[]), "calibration: "),
        (lambda x: x["calibration"].update(seed=-1), r"calibration\.seed: "),
        (lambda x: x.update(slices="3"), "slices: "),
        (lambda x: x.update(layers=None), "layers: "),
        (lambda x: x["layers"].append("blocks.9.attn"), "attentions is not about the layers"),
        (lambda x: x["column_error"].update({PATH: -1}), "column_error"),
        (lambda x: x["column_error"].pop(PATH), "column_error is not about the layers"),
        (lambda x: x["attentions"][PATH].update(refine="1"), f"attentions.{PATH} is no attention"),
        (lambda x: x["attentions"][PATH].update(refine=True), "is no attention"),
        (lambda x: x["attentions"][PATH].update(eps=0), "is no attention"),
        (lambda x: x["attentions"][PATH].update(name="other"), "is no attention"),
        (lambda x: x["attentions"][PATH].pop("name"), "is no attention"),
        (lambda x: x["attentions"][PATH].update(extra=1), "has no option extra"),
        (lambda x: x.update(other=1), "other: "),
        (lambda x: x.pop("teacher_layers"), "teacher_layers is missing"),
    ],
)
def test_an_identity_of_another_shape_is_a_sentence(
    pipeline: Pipeline, change: Callable[[Any], Any], words: str
) -> None:
    file = pipeline.artifact / "asap.json"
    identity = read_json(file)
    change(identity)
    write_sealed(file, identity)
    with pytest.raises(UserError, match=rf"asap\.json is damaged.*{words}"):
        load_artifact(pipeline.artifact)
    with pytest.raises(UserError, match=words):
        run_evaluate(pipeline.results)


def test_layers_that_have_no_tensors_are_refused(pipeline: Pipeline) -> None:
    file = pipeline.artifact / "asap.json"
    identity = read_json(file)
    for key in ("attentions", "column_error"):
        identity[key]["blocks.7.attn"] = identity[key].pop(PATH)
    identity["layers"][0] = "blocks.7.attn"
    write_sealed(file, identity)
    with pytest.raises(UserError, match=r"asap\.safetensors is not the file that"):
        load_artifact(pipeline.artifact)


def test_what_is_hashed_is_what_the_file_holds(shared_pipeline: Pipeline) -> None:
    artifact = load_artifact(shared_pipeline.artifact)
    assert artifact.identity | {SEAL: ANY} == read_json(shared_pipeline.artifact / "asap.json")
    assert artifact.about.calibration.slices == 3
    assert artifact.about.layers == artifact.layers
