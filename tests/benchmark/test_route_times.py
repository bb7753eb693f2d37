"""Times of the routes of Sinkhorn attention beside each other."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from asap_exp import ops
from asap_exp.benchmark import route_times
from asap_exp.benchmark.route_times import Case, Times, prepared, timed, ways

if ops.backend.fused is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from asap_exp.core.files import read_json
from asap_exp.ops import routes
from asap_exp.ops.call import Device, as_if
from tests.conftest import Pipeline

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASE = Case(n=8, num_iters=2, spread=4.0, heads=2, head_dim=16, dtype="float32", train=False)


def test_every_way_takes_the_routes_that_it_names():
    for train in (False, True):
        case = Case(8, 2, 1.0, 1, 16, "float32", train)
        inputs = case.inputs(DEVICE)
        found = list(ways(case, inputs))
        assert len(found) > 1
        for names in found:
            with routes.recorded() as taken, prepared(case, inputs, names)() as call:
                call()
            assert tuple(route for _, route in taken)[-len(names) :] == names


def test_only_ways_that_a_gpu_has_are_timed():
    case = Case(300, 20, 1.0, 1, 64, "bfloat16", train=False)
    with as_if(Device((9, 0), 132)):
        hopper = {names[0] for names in ways(case, case.inputs(DEVICE))}
    with as_if(Device((8, 0), 108)):
        ampere = {names[0] for names in ways(case, case.inputs(DEVICE))}
    assert hopper == {"plan on chip", "tiled, bfloat16", "keys in registers", "tiled"}
    assert ampere == hopper - {"plan on chip"}


@pytest.mark.parametrize("spread", [1.0, 16.0])
def test_logits_have_the_spread_that_was_asked_for(spread):
    q, k, _ = Case(400, 1, spread, 4, 64, "float32", train=False).inputs(torch.device("cpu"))
    assert (q @ k.transpose(2, 3) / 8).std().item() == pytest.approx(spread, rel=0.05)


def test_chosen_way_is_among_the_timed():
    times = timed(CASE, CASE.inputs(DEVICE), rounds=2)
    assert times.chosen in times.ms
    assert all(ms > 0 for ms in times.ms.values())


@pytest.mark.parametrize(("chosen", "is_right"), [("tiled", False), ("logits in registers", True)])
def test_verdict(chosen, is_right):
    times = Times(CASE, chosen, {"tiled": 1.04, "logits in registers": 1.0})
    assert times.fastest == "logits in registers"
    assert times.is_right is is_right


def test_command_says_which_choices_are_wrong(monkeypatch, capsys, tmp_path: Path):
    answers = {5: {"tiled": 2.0, "keys in registers": 1.0}, 10: {"tiled": 1.0}}
    monkeypatch.setattr(
        route_times,
        "timed",
        lambda case, inputs, rounds: Times(case, "tiled", answers[case.num_iters]),
    )
    file = tmp_path / "times.json"
    words = ["route_times.py", "--n", "8", "--updates", "5", "10", "--spread", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(file)])
    route_times.main()
    printed = capsys.readouterr().out
    assert "T = 5, logits of 1: keys in registers 1.000 ms, tiled (chosen) 2.000 ms" in printed
    assert "1 of 2 choices are slower" in printed
    assert "T = 5, logits of 1: tiled takes 2.00 times keys in registers" in printed
    record = json.loads(file.read_text())
    assert [case["ms"] for case in record["cases"]] == list(answers.values())


def test_stopped_command_leaves_what_it_measured_beside_the_file(
    monkeypatch, capsys, tmp_path: Path
):
    def second_is_stopped(case, inputs, rounds):
        if case.num_iters == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return Times(case, "tiled", {"tiled": 1.0})

    monkeypatch.setattr(route_times, "timed", second_is_stopped)
    file, unfinished = tmp_path / "times.json", tmp_path / "times.unfinished.json"
    file.write_text("of an earlier run")
    words = ["route_times.py", "--n", "8", "--spread", "1", "--json", str(file), "--updates"]
    monkeypatch.setattr(sys, "argv", [*words, "5", "10"])
    with pytest.raises(SystemExit) as status:
        route_times.main()
    assert status.value.code == 143
    assert f"{unfinished} has the 1 case measured until then\n" in capsys.readouterr().out
    assert [case["case"]["num_iters"] for case in read_json(unfinished)["cases"]] == [5]
    assert file.read_text() == "of an earlier run"
    monkeypatch.setattr(sys, "argv", [*words, "5", "6"])
    route_times.main()
    assert [case["case"]["num_iters"] for case in read_json(file)["cases"]] == [5, 6]
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "1"], "--rounds must be a number of at least 2, got 1"),
        (["--n", "8", "0"], "--n must be a number of at least 1, got 0"),
        (["--updates", "-3"], "--updates must be a number of at least 1, got -3"),
        (["--spread", "-1"], "--spread must be a number of at least 0, got -1"),
        (["--spread", "1", "nan", "2"], "--spread must be a number of at least 0, got nan"),
        (["--spread", "inf"], "--spread must be a number of at least 0, got inf"),
        (["--json", "."], "--json . is a folder; give the name of a file"),
        (["--teacher", "a", "--spread", "1"], "--spread: the inputs are the teacher's"),
        (["--teacher", "a", "--head-dim", "8"], "--head-dim: the inputs are the teacher's"),
        (["--teacher", "no/run"], "no/run is not a run directory"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(monkeypatch, capsys, words, message):
    check_refused(monkeypatch, capsys, words, message)


def check_refused(monkeypatch, capsys, words: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["route_times.py", *words])
    with pytest.raises(SystemExit) as status:
        route_times.main()
    assert status.value.code == 2
    assert message in capsys.readouterr().err


def test_machine_without_kernels_is_refused_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(
        ops, "explain", lambda *a, **k: type("Found", (), {"refusal": "q is on cpu"})()
    )
    words = ["--n", "8"]
    check_refused(monkeypatch, capsys, words, "there are no routes to compare: q is on cpu")


@pytest.mark.slow
def test_inputs_of_all_layers_of_a_teacher(monkeypatch, capsys, pipeline: Pipeline):
    """Four tokens of its own, or sixteen of resized images."""
    seen = {}

    def answer(case, inputs, rounds):
        seen[str(case)] = inputs
        return Times(case, "tiled", {"tiled": 1.0})

    monkeypatch.setattr(route_times, "timed", answer)
    words = ["--teacher", str(pipeline.teacher.path), "--tokens", "64", "--updates", "2"]
    for more, n in (([], 4), (["--n", "16"], 16)):
        monkeypatch.setattr(sys, "argv", ["route_times.py", *words, *more])
        route_times.main()
        layers = [name for name in seen if name.startswith(f"n = {n}, T = 2, inputs of blocks.")]
        assert len(layers) == len(set(layers)) == pipeline.teacher.config.model.depth
        for name in layers:
            q, k, v = seen[name]
            assert q.shape[0] * q.shape[1] * n == 64
            assert q.shape == k.shape == v.shape
            assert q.dtype == torch.bfloat16
    assert "0 of 2 choices are slower" in capsys.readouterr().out
    message = "--n: n = 8 is left out: the teacher's inputs have 4"
    check_refused(monkeypatch, capsys, [*words, "--n", "8"], message)
