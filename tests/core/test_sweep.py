"""Sweeps: the table at the end, a folder per sweep, and what a sweeper is given."""

import csv
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from asap_exp.core import app, sweep
from asap_exp.core.command_line import again, command
from asap_exp.core.composing import quoted
from asap_exp.core.conf_files import conf_dir
from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.score import Score
from asap_exp.core.sweep import Job
from asap_exp.core.sweep_table import as_csv, best_first, varying

ENDS = (["finished"], ["failed"])
"""The last words of a job's row."""


def job(number: int, value: float | None = None, *, lower: bool = False, **more) -> Job:
    score = None if value is None else Score(name="loss", value=value, lower_is_better=lower)
    given = {"overrides": [f"seed={number}", "task=digits"], "status": 0, "logs": []}
    return Job(**{"number": number, "score": score, "seconds": 1.0, **given, **more})


def test_jobs_are_listed_best_first_and_those_without_a_score_last():
    jobs = [job(0), job(1, 0.2), job(2, 0.9), job(3)]
    assert [each.number for each in best_first(jobs)] == [2, 1, 0, 3]
    jobs = [job(0), job(1, 0.2, lower=True), job(2, 0.9, lower=True), job(3)]
    assert [each.number for each in best_first(jobs)] == [1, 2, 0, 3]


def test_table_names_what_differs_and_the_file_everything():
    jobs = [job(0, 0.5), job(1, 0.25), job(2, status=2, error='a "mistake", this')]
    assert varying(jobs) == ["seed"]
    rows = list(csv.DictReader(as_csv(jobs).splitlines()))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert {row["task"] for row in rows} == {"digits"}
    assert [row["loss"] for row in rows] == ["0.5", "0.25", ""]
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    assert rows[2]["error"] == 'a "mistake", this'


def test_quotes_of_the_command_line_are_no_part_of_a_path():
    """`make sweep` quotes the paths that it hands to the later stages."""
    paths = ["results/a=1", "it's", "plain"]
    jobs = [job(n, overrides=[quoted("teacher", path)]) for n, path in enumerate(paths)]
    assert jobs[0].overrides == ["teacher='results/a=1'"]
    rows = csv.DictReader(as_csv(jobs).splitlines())
    assert [row["teacher"] for row in rows] == paths


def run_sweep(monkeypatch: pytest.MonkeyPatch, results: Path, *words: str) -> list[object]:
    """Run a sweep of stand-ins for trainings, and return what a sweeper would be given."""
    returned: list[object] = []

    def noted(self: sweep.Ledger, config: object, job_return: JobReturn, **_: object) -> None:
        assert job_return.status == JobStatus.COMPLETED
        returned.append(job_return.return_value)

    def train(config: TrainConfig) -> Score:
        if config.seed == 7:
            raise UserError("a mistake")
        return Score(name="validation accuracy", value=config.seed / 10, text=f"{config.seed}0 %")

    monkeypatch.setattr(sweep.Ledger, "on_job_end", noted)
    monkeypatch.setattr(sweep.Ledger, "folder", None)
    monkeypatch.setattr(sweep.Ledger, "made", [])
    monkeypatch.setattr(sys, "argv", ["train", "-m", "task=digits", *words])
    monkeypatch.chdir(results)
    with suppress(SystemExit):
        app.main("train", TrainConfig, train)
    return returned


@pytest.mark.slow
def test_sweep_ends_with_a_table_and_gives_a_sweeper_the_score(monkeypatch, tmp_path, capsys):
    returned = run_sweep(monkeypatch, tmp_path, "seed=1,9,7,4")
    assert returned == [0.1, 0.9, None, 0.4]
    out, err = capsys.readouterr()
    assert "Sweep of 4 jobs, best first" in out
    assert "│" not in out
    rows = [words for line in out.splitlines() if (words := line.split())[-1:] in ENDS]
    assert [words[0] for words in rows] == ["1", "3", "0", "2"]
    assert "1 of 4 jobs failed" in err
    (folder,) = (tmp_path / "results/runs/.multirun").iterdir()
    assert f"Table: results/runs/.multirun/{folder.name}/sweep.csv" in out
    lines = csv.DictReader((folder / "sweep.csv").open())
    assert [line["validation accuracy"] for line in lines] == ["0.9", "0.4", "0.1", ""]


@pytest.mark.slow
def test_command_of_a_job_runs_that_job_and_not_the_sweep(monkeypatch, tmp_path):
    """It is what the manifest of a run has, and what to do when its files are damaged."""
    commands: list[str] = []
    given = ["-m", "task=digits", "seed=1,2", quoted("hydra.sweep.dir", tmp_path / "s")]
    monkeypatch.setattr(sys, "argv", ["train", *given, "model.depth=2,3"])
    monkeypatch.setattr(sweep.Ledger, "folder", None)
    monkeypatch.chdir(tmp_path)
    with suppress(SystemExit):
        app.main("train", TrainConfig, lambda _: commands.append(command()))
    runs = [(seed, depth) for seed in (1, 2) for depth in (2, 3)]
    assert commands == [
        f"python -m asap_exp.train task=digits seed={seed} model.depth={depth}"
        for seed, depth in runs
    ]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-m", "seed=0,1")], ids=["alone", "varied"])
def test_job_of_an_experiment_that_sweeps_by_itself_runs_alone(monkeypatch, tmp_path, flags):
    """With several devices, each rank of the job is started by this command."""
    found: list[tuple[list[str], object]] = []

    def train(config: TrainConfig) -> None:
        found.append((again() or [], config.attention["eps"]))

    def run(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["train", *words])
        with suppress(SystemExit):
            app.main("train", TrainConfig, train)

    monkeypatch.setattr(sweep.Ledger, "folder", None)
    monkeypatch.chdir(tmp_path)
    run(["task=digits", "experiment=ablation_eps", *flags])
    assert {eps for _, eps in found} == {0.25, 0.5, 1.0, 2.0}
    jobs = len(found)
    words, eps = found[1]
    run(words[2:])
    assert len(found) == jobs + 1
    assert found[-1] == (words, eps)


@pytest.mark.slow
def test_later_sweep_overwrites_nothing(monkeypatch, tmp_path):
    for seeds in ("seed=1,2", "seed=3,4"):
        run_sweep(monkeypatch, tmp_path, seeds)
    first, second = sorted((tmp_path / "results/runs/.multirun").iterdir())
    assert "seed=1" in (first / "multirun.yaml").read_text() + (first / "sweep.csv").read_text()
    assert (first / "multirun.yaml").is_file()
    assert (second / "multirun.yaml").is_file()


def test_slurm_gets_place_time_and_signal_of_a_job(monkeypatch, tmp_path):
    import submitit
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    words = ["task=digits", "hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
    with initialize_config_dir(str(conf_dir() / "train"), version_base="1.3"):
        config = compose("train", words, return_hydra_config=True)
    config.hydra.launcher.submitit_folder = str(tmp_path)
    texts = []

    def submitted(executor, *_):
        texts.append(executor._executor._make_submission_file_text("run", "job"))
        return []

    monkeypatch.setattr(submitit.slurm.slurm.shutil, "which", lambda _: "srun")
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", submitted)
    launcher = instantiate(config.hydra.launcher)
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    launcher.launch([["seed=1"]], 0)
    for line in ("partition=gpu", "time=240", "gpus-per-node=1", "signal=USR2@120", "requeue"):
        assert f"#SBATCH --{line}" in texts[0]


@pytest.mark.parametrize(
    ("launcher", "srun", "told"),
    [
        ("slurm", "/usr/bin/srun", True),
        ("slurm", None, False),  # nothing will be printed: the launcher refuses
        ("submitit_local", None, True),
    ],
)
def test_place_of_what_jobs_print_is_told_where_jobs_start(
    monkeypatch, tmp_path, capsys, launcher, srun, told
):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir() / "train"), version_base="1.3"):
        words = ["task=digits", f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}"]
        config = compose("train", words, return_hydra_config=True)
    config.hydra.launcher.submitit_folder = str(tmp_path / ".submitit/job")
    monkeypatch.setattr(sweep.shutil, "which", lambda _: srun)
    monkeypatch.setenv(sweep.LEDGER, "")
    monkeypatch.setattr(sweep.Ledger, "folder", None)
    sweep.Ledger().on_multirun_start(config)
    assert (f"The jobs print into files below {tmp_path}" in capsys.readouterr().out) is told


@pytest.mark.parametrize(
    ("words", "gpus", "told"),
    [
        (["hydra/launcher=submitit_local"], True, True),
        (["hydra/launcher=submitit_local"], False, False),  # nothing to hide
        (["hydra/launcher=submitit_local", "hydra.launcher.gpus_per_node=1"], True, False),
        (["hydra/launcher=submitit_local", "trainer.accelerator=cpu"], True, False),
        (["hydra/launcher=slurm"], True, False),  # the cluster hands out GPUs
        ([], True, False),
    ],
)
def test_jobs_that_will_see_no_gpu_are_warned_of(monkeypatch, tmp_path, capsys, words, gpus, told):
    import torch
    from hydra import compose, initialize_config_dir

    words = ["task=digits", *words, f"hydra.sweep.dir={tmp_path}"]
    with initialize_config_dir(str(conf_dir() / "train"), version_base="1.3"):
        config = compose("train", words, return_hydra_config=True)
    if "submitit_folder" in config.hydra.launcher:
        config.hydra.launcher.submitit_folder = str(tmp_path / ".submitit/job")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setenv(sweep.LEDGER, "")
    monkeypatch.setattr(sweep.Ledger, "folder", None)
    sweep.Ledger().on_multirun_start(config)
    assert ("hydra.launcher.gpus_per_node=1 gives" in capsys.readouterr().err) is told


HAS_OPTUNA = importlib.util.find_spec("optuna") is not None


@pytest.mark.slow
@pytest.mark.skipif(not HAS_OPTUNA, reason="optuna is not installed (the extra `optuna`)")
def test_optuna_searches_by_the_score_and_a_failed_job_is_a_failed_trial(
    monkeypatch, tmp_path, capsys
):
    words = ("hydra/sweeper=tpe", "hydra.sweeper.n_trials=6", "seed=choice(1,7)")
    storage = f"hydra.sweeper.storage=sqlite:///{tmp_path / 'study.db'}"
    returned = run_sweep(monkeypatch, tmp_path, *words, storage)
    assert set(returned) == {0.1, None}
    assert len(returned) == 6
    (folder,) = (tmp_path / "results/runs/.multirun").iterdir()
    found = (folder / "optimization_results.yaml").read_text()
    assert "best_value: 0.1" in found


@pytest.mark.skipif(HAS_OPTUNA, reason="optuna is installed")
def test_missing_optuna_is_a_sentence(monkeypatch, tmp_path, capsys):
    assert run_sweep(monkeypatch, tmp_path, "hydra/sweeper=tpe", "seed=choice(1,2)") == []
    assert "pip install 'asap_exp[optuna]'" in capsys.readouterr().err


@pytest.mark.slow
def test_sweep_of_checks_leaves_nothing(monkeypatch, tmp_path, capsys):
    run_sweep(monkeypatch, tmp_path, "seed=1,7", "check=true")
    out, err = capsys.readouterr()
    assert "Sweep of 2 jobs" in out
    assert "One after another they would take about 0.1 s" in out
    assert "1 of 2 jobs failed" in err
    assert not list(tmp_path.iterdir())
