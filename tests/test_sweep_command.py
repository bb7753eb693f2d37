"""`make sweep`: all stages over a grid of settings, an interruption, failures and the table."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asap_exp.core.config import EvaluateConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_json
from asap_exp.core.runs import short_hash
from asap_exp.core.sweep import Job
from asap_exp.distill import distill
from asap_exp.distill.config import DistillConfig
from tests.composed import composed
from tests.stages import CALIBRATION, EVALUATION, SINKHORN, TINY, train_config
from tests.test_scripts import ROOT, script

sweep = script("sweep")
results = sys.modules["sweep_results"]

LATER = tuple(
    f"{stage}.{word}"
    for stage, words in (("distill", CALIBRATION), ("evaluate", EVALUATION))
    for word in words
    if word != "logger=csv"
)


def test_words_go_to_the_stages_that_take_them() -> None:
    given = ["task=digits", "seed=0,1", "logger=csv", "paths.results=r", "distill.layer=last"]
    words = sweep.separated([*given, "evaluate.batch_size=8", "hydra/launcher=joblib"])
    assert words.train == given[:4]
    assert words.of("distill") == ["logger=csv", "paths.results=r", "layer=last"]
    assert words.of("evaluate") == ["logger=csv", "paths.results=r", "batch_size=8"]
    assert words.hydra == ["hydra/launcher=joblib"]
    with pytest.raises(UserError, match="give one"):
        sweep.separated(["distill.calibration.seed=0,1"])
    with pytest.raises(UserError, match="sweeps by itself"):
        sweep.separated(["experiment=ablation_eps", "seed=0,1"])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("seed=0,0", "seed=0"),
        ("seed=1,0,1,2", "seed=1,0,2"),
        ("seed=choice(0,0)", "seed=0"),
        ("recipe.lr=1e-3,0.001,2e-3", "recipe.lr=0.001,0.002"),
        ("attention=softmax,'softmax',sinkhorn", "attention=softmax,sinkhorn"),
        ("recipe.optimizer_options={a: 1},{a: 1}", "recipe.optimizer_options={a:1}"),
        ("data.root='a, b','a, b'", "data.root='a, b'"),
        ("seed=range(0,3)", "seed=range(0,3)"),
        ("+experiment=demo", "+experiment=demo"),
    ],
)
def test_value_that_is_named_twice_counts_once(given: str, kept: str) -> None:
    assert sweep.separated([given]).train == [kept]


def test_key_that_is_given_twice_has_its_last_values() -> None:
    given = ["seed=0,1", "task=digits", "+seed=0,2", "~experiment"]
    assert sweep.separated(given).train == ["task=digits", "+seed=0,2", "~experiment"]


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("distill.teacher=foo", "the runs of the sweep are compiled; leave it out"),
        ("evaluate.teacher=foo", "the runs of the sweep are compiled; leave it out"),
        ("evaluate.+artifact=foo", "the maps of the sweep are evaluated; leave it out"),
        ("distill.task=digits", "that of the trainings, task=NAME"),
        ("evaluate.paths.results=foo", "that of the trainings, paths.results=FOLDER"),
        ("distill.check=true", "check=true checks the trainings"),
        ("hydra.sweep.dir=foo", "each stage has a folder of its own"),
    ],
)
def test_what_the_command_sets_itself_is_refused(word: str, advice: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(word)} is not allowed: .*{advice}"):
        sweep.separated(["task=digits", word])


@pytest.mark.parametrize("word", ["paths.results=a,b", "logger=csv,wandb", "data.root=a,b"])
def test_what_all_stages_take_has_one_value(word: str) -> None:
    with pytest.raises(UserError, match=f"^{word}: the later stages take it too"):
        sweep.separated([word])


@pytest.mark.parametrize("more", [(), ("check=true",)], ids=["run", "check"])
@pytest.mark.parametrize("word", ["evaluate.batch_siz=3", "distill.calibration=nope"])
def test_mistake_in_a_later_stage_shows_before_the_first(
    tmp_path, monkeypatch, more, word, capsys
) -> None:
    """Whether the sweep is checked or run; the words name the stage's own key."""
    monkeypatch.setattr(sweep, "wait_for", lambda _: pytest.fail("a stage was started"))
    given = ["task=digits", f"paths.results={tmp_path}", "seed=0,1", word, *more]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *given])
    with pytest.raises(SystemExit) as end:
        sweep.main()
    assert end.value.code == 2
    assert word.partition(".")[2] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_mean_and_deviation_leave_out_what_was_not_measured() -> None:
    assert results.spread([0.5, 0.7, None], 100) == "60.00 ± 14.14"
    assert results.spread([0.5], 100) == "50.00"
    assert results.spread([None], 100) == ""


def test_failures_of_every_stage_are_kept_with_their_logs(tmp_path, monkeypatch, capsys) -> None:
    failed = Job(number=1, overrides=["seed=1"], status=2, error="why", logs=["l"], seconds=1)

    def stage(command: list[str]) -> int:
        folder = next(tmp_path.glob("runs/.multirun/*"), None)
        assert folder is None
        place = command[-1].partition("=")[2].strip("'")
        write_json(Path(place) / "1.json", asdict(failed))
        return 2

    monkeypatch.setattr(sweep, "wait_for", stage)
    under_way = sweep.Sweep(sweep.separated(["task=digits"]), tmp_path)
    under_way.run("train", ["task=digits"])
    assert (under_way.ended, under_way.status) == ([failed], 2)
    monkeypatch.setattr(sweep, "wait_for", lambda _: 2)
    with pytest.raises(SystemExit):  # refused before its first job
        under_way.run("distill", [])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_map_of_a_budget_is_found_whatever_timed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    words = ["budget.accuracy_drop=1", "calibration.holdout=100"]
    asked = composed("distill", words, DistillConfig)
    timed = distill.with_timing(asked, torch.device(kind))
    folder = tmp_path / short_hash(distill.artifact_key(timed, ["a"]))
    write_json(folder / "manifest.json", {"config": {"layers": ["a"]}})
    monkeypatch.setattr(results, "finished_artifacts", lambda _: [(None, folder)])
    run: Any = None
    assert results.map_of(run, asked) == folder
    other = replace(asked, budget=replace(asked.budget, accuracy_drop=2.0))
    assert results.map_of(run, other) is None


@pytest.mark.slow
def test_runs_maps_and_evaluations_are_found_again(pipeline, capsys, monkeypatch) -> None:
    asked = composed("distill", [*CALIBRATION], DistillConfig)
    settings = composed("evaluate", [*EVALUATION], EvaluateConfig)
    runs = [pipeline.teacher, pipeline.softmax]
    folder = results.map_of(pipeline.teacher, asked)
    assert folder == pipeline.artifact
    assert results.evaluated(pipeline.teacher, folder, settings, runs) is not None
    other = composed("distill", [*CALIBRATION, "calibration.seed=1"], DistillConfig)
    assert results.map_of(pipeline.teacher, other) is None
    monkeypatch.setattr(distill, "samples_of", lambda run, data: 64)  # of which 16 are held out
    by_data = composed("distill", [*CALIBRATION, "calibration.holdout=null"], DistillConfig)
    assert results.map_of(pipeline.teacher, by_data) == pipeline.artifact
    planned = [
        results.Planned({"attention": name, "seed": seed}, results.settled(config)[0])
        for name, seed, config in (
            ("softmax", "0", train_config(pipeline.results, attention=("attention=softmax",))),
            ("sinkhorn", "0", train_config(pipeline.results)),
            ("sinkhorn", "7", train_config(pipeline.results, "seed=7")),
        )
    ]
    assert [run and run.path for run in results.runs_of(planned)] == [
        pipeline.softmax.path,
        pipeline.teacher.path,
        None,
    ]
    for precision, found in (("32-true", pipeline.teacher.path), ("bf16-mixed", None)):
        (run,) = results.runs_of([replace(planned[1], precision=precision)])
        assert (run and run.path) == found
    results.print_results(planned, (asked, settings))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " of " in line]
    softmax, sinkhorn = (row for row in rows if row[0] in ("softmax", "sinkhorn"))
    assert softmax[1:4] == ["1", "of", "1"]
    assert sinkhorn[1:4] == ["1", "of", "2"]
    assert len(softmax) == 4 + 2 + 2  # validation and test, and the time
    assert len(sinkhorn) == 4 + 5 + 2


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run the script in a session of its own, and kill what is left of it."""
    with subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "sweep.py", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it starts eight processes, which import PyTorch one after another
def test_interrupted_sweep_goes_on_and_ends_with_its_table(tmp_path: Path) -> None:
    words = (*TINY, *SINKHORN, "seed=0,1", "recipe.epochs=6", *LATER)
    with started(tmp_path, *words) as process:
        while not list(tmp_path.rglob("teacher.safetensors")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert process.returncode == 143
    assert err.count("start the same command again") == 1
    assert "Traceback" not in err
    assert len(list(tmp_path.rglob("teacher.safetensors"))) < 3
    with started(tmp_path, *words) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "Already finished" in out or "2 finished before" in out
    table = out[out.rindex("Sweep of 2 runs") :]
    assert "2 of 2" in table
    assert table.count("±") == 6  # of the title, and five numbers


def test_launcher_of_one_machine_is_kept_from_latencies() -> None:
    hydra = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.verbose=true"]
    assert [word for word in hydra if not word.startswith(sweep.ALONE)] == ["hydra.verbose=true"]
