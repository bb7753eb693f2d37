"""fidelity.json must belong to the map in the same folder, or it is refused."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from asap_exp.calibration.artifact import load_artifact, load_fidelity
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json, write_json
from asap_exp.core.sealed import write_sealed
from tests.conftest import Pipeline
from tests.stages import run_distill, run_evaluate


@pytest.mark.slow
def test_the_rows_of_another_map_are_refused(pipeline: Pipeline) -> None:
    """The two maps have the same layers and heads, so only the hash tells them apart."""
    other = run_distill(pipeline.results, "calibration.seed=1")
    shutil.copy(pipeline.artifact / "fidelity.json", other / "fidelity.json")
    with pytest.raises(UserError, match=r"fidelity\.json was changed, or is not of the map"):
        run_evaluate(pipeline.results, f"artifact={other}")
    assert not list(pipeline.teacher.path.glob("evaluate/*/metrics.json"))[1:]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: None,
        lambda rows: {},
        lambda rows: [],
        lambda rows: rows[1:],
        lambda rows: [*rows, rows[0]],
        lambda rows: [{**rows[0], "layer": "x"}, *rows[1:]],
        lambda rows: [{**rows[0], "head": True}, *rows[1:]],
        lambda rows: [{**rows[0], "column_error": -1}, *rows[1:]],
        lambda rows: [{**rows[0], "column_error": "0.1"}, *rows[1:]],
        lambda rows: [{**rows[0], "kl_other": 0.1}, *rows[1:]],
        lambda rows: [{**rows[0], "column_error": 0.5}, *rows[1:]],
    ],
)
def test_damaged_rows_are_a_sentence(pipeline: Pipeline, change: Callable[[Any], Any]) -> None:
    file = pipeline.artifact / "fidelity.json"
    write_json(file, change(read_json(file)))
    with pytest.raises(UserError, match=r"fidelity\.json (is damaged|was changed)"):
        load_fidelity(pipeline.artifact, load_artifact(pipeline.artifact))


def test_rows_of_a_map_that_says_nothing_of_them_are_read(pipeline: Pipeline) -> None:
    """Older maps have no hash, but their layers and heads are still compared."""
    identity = read_json(pipeline.artifact / "asap.json")
    del identity["fidelity_sha256"]
    write_sealed(pipeline.artifact / "asap.json", identity)
    rows = read_json(pipeline.artifact / "fidelity.json")
    assert load_fidelity(pipeline.artifact, load_artifact(pipeline.artifact)) == rows
    write_json(pipeline.artifact / "fidelity.json", rows[::-1])
    with pytest.raises(UserError, match="is not of the map"):
        load_fidelity(pipeline.artifact, load_artifact(pipeline.artifact))
