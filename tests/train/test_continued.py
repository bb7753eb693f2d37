"""Curves of a run that was stopped and resumed: every point, and each of them once."""

import csv
import os
import signal
from collections import Counter
from pathlib import Path

import lightning as L
import pytest

from asap_exp.core.interruption import Interrupted
from asap_exp.core.runs import run_directory
from asap_exp.train import trainer as training_fit
from asap_exp.train.trainer import resolved
from tests.stages import run_train, train_config
from tests.train.test_resume import Killed
from tests.wandb_file import points

OFTEN = ("logger=both", "trainer.log_every_n_steps=1")


class EndAt(L.Callback):
    """Callback that ends the work after a step, by a signal or as a power cut would."""

    def __init__(self, step: int, *, politely: bool) -> None:
        self.step, self.politely = step, politely

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            if not self.politely:
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)


def end_at(patch: pytest.MonkeyPatch, step: int, *, politely: bool) -> None:
    """Have trainings end after a step."""
    build, ending = training_fit.build_callbacks, EndAt(step, politely=politely)
    patch.setattr(training_fit, "build_callbacks", lambda *a: [ending, *build(*a)])


def logged(run: Path) -> Counter[tuple[str, int]]:
    """Return how often each number is in the CSV logs of all attempts, by its step."""
    found: Counter[tuple[str, int]] = Counter()
    for file in run.glob("logs/version_*/metrics.csv"):
        with file.open(newline="") as opened:
            for row in csv.DictReader(opened):
                names = [
                    name for name, cell in row.items() if cell and name not in ("step", "epoch")
                ]
                found.update((name, int(row["step"])) for name in names)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Counter[tuple[str, int]]:
    """Points of a training that was not interrupted."""
    run = run_train(tmp_path_factory.mktemp("whole"), "logger=csv", OFTEN[1])
    return logged(run.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "politely"),
    [(6, True), (8, True), (7, False)],
    ids=["in an epoch", "after an epoch", "killed beyond the checkpoint"],
)
def test_resumed_offline_run_has_every_point_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Counter[tuple[str, int]],
    step: int,
    politely: bool,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with monkeypatch.context() as patch:
        end_at(patch, step, politely=politely)
        with pytest.raises(Interrupted if politely else Killed):
            run_train(tmp_path, *OFTEN)
    place = run_directory(resolved(train_config(tmp_path, *OFTEN)))
    (before,) = place.glob("wandb/offline-run-*/*.wandb")

    run = run_train(tmp_path, *OFTEN)

    assert run.path == place
    (file,) = place.glob("wandb/offline-run-*/*.wandb")
    assert points(file) == whole
    assert set(whole.values()) == {1}
    assert (place / "wandb" / "earlier" / before.parent.name / before.name).is_file()
    if politely:
        assert logged(place) == whole, "a stop loses no row of the CSV log"


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 7], ids=["in an epoch", "beyond the checkpoint"])
def test_resumed_run_has_every_point_once_in_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Counter[tuple[str, int]], step: int
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ("logger=tensorboard", OFTEN[1])
    with monkeypatch.context() as patch:
        end_at(patch, step, politely=step == 6)
        with pytest.raises((Interrupted, Killed)):
            run_train(tmp_path, *options)
    run = run_train(tmp_path, *options)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    found = [(name, e.step) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
    assert Counter(point for point in found if point[0] != "epoch") == whole
    assert not (run.path / "wandb").exists()
