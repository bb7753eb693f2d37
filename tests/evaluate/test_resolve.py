"""The map and the teacher that an evaluation is asked for: found by name or path, or explained."""

import re
from pathlib import Path

import pytest

from asap_exp.core.config import EvaluateConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run
from asap_exp.evaluate.resolve import find_compiled
from tests.composed import composed
from tests.fake_runs import fake_map, fake_run


def found(results: Path, *words: str) -> tuple[Run, Path]:
    given = [f"paths.results={results}", *words]
    return find_compiled(composed("evaluate", given, EvaluateConfig))


def refusal(results: Path, *words: str) -> str:
    with pytest.raises(UserError) as error:
        found(results, *words)
    return str(error.value)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_run_in_the_place_of_a_map_is_named_with_its_maps(tmp_path: Path, by_name: bool) -> None:
    run = fake_run(tmp_path)
    older = fake_map(run, "aaaaaaaa", ended="2026-01-01T00:00:00+00:00")
    newer = fake_map(run, "bbbbbbbb", ended="2026-01-02T00:00:00+00:00")
    given = run.name if by_name else str(run.path)
    assert refusal(tmp_path, f"artifact={given}") == (
        f"artifact={given} is a run, not a map; give a map, RUN/distill/HASH, or teacher={given} "
        f"for the newest\nIts maps, the newest first:\n  {newer}\n  {older}"
    )
    assert found(tmp_path, f"teacher={given}")[1] == newer
    assert found(tmp_path, f"artifact={newer}") == (Run(run.path.resolve()), newer)


@pytest.mark.parametrize(
    ("attention", "fitting"), [("sinkhorn", ""), ("softmax", " calibration=hedgehog")]
)
def test_a_teacher_without_a_map_gets_the_command_that_makes_one(
    tmp_path: Path, attention: str, fitting: str
) -> None:
    run = fake_run(tmp_path, f"attention={attention}")
    command = f"asap_exp.distill paths.results={tmp_path} teacher={run.path}{fitting}"
    for word in (f"teacher={run.path}", f"teacher={run.name}", f"artifact={run.path}"):
        message = refusal(tmp_path, word)
        assert re.search(rf"make one with: python -m {re.escape(command)}$", message), message
    assert refusal(tmp_path).endswith(f"asap_exp.distill paths.results={tmp_path}{fitting}")


@pytest.mark.parametrize(
    ("stage", "what"), [("distill", "a compiled map"), ("evaluate", "an eval")]
)
def test_what_a_run_made_is_no_teacher(tmp_path: Path, stage: str, what: str) -> None:
    run = fake_run(tmp_path)
    folder = run.path / stage / "aaaaaaaa"
    folder.mkdir(parents=True)
    message = refusal(tmp_path, f"teacher={folder}")
    assert message.startswith(f"{folder} is {what}")
    assert message.endswith(f"not a run; its run is {run.path}")
