"""How long a training takes is said soon after its start, if that is long."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asap_exp.engine import pace
from asap_exp.engine.pace import PaceLine
from asap_exp.engine.progress import progress_callbacks

MODULE: Any = SimpleNamespace(recorded=None)


def trainer(batches: float = 391, *, epochs: int = 60, max_steps: int = -1, each: int = 1) -> Any:
    return SimpleNamespace(
        num_training_batches=batches,
        max_epochs=epochs,
        max_steps=max_steps,
        accumulate_grad_batches=each,
        current_epoch=0,
        global_step=0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    """Return what is printed while batches end at these seconds."""

    def printed(ends: list[float], of: Any, modules: Any = None) -> str:
        line = PaceLine()
        for number, end in enumerate(ends):
            monkeypatch.setattr(pace.time, "monotonic", lambda end=end: end)
            module = MODULE if modules is None else modules[number]
            line.on_train_batch_end(of, module, None, None, number)
        return capsys.readouterr().out

    return printed


def test_a_long_training_says_how_long_once(run: Any) -> None:
    """60 epochs of 391 batches, less the three that are done, of 8 s each."""
    text = run([30.0, 38.0, 46.0, 54.0, 62.0], trainer())
    assert text == (
        "At the pace of the first 2 batches, this takes 52 h 07 min more on cpu, validation not "
        "counted\n"
    )


def test_a_short_training_and_a_first_moment_say_nothing(run: Any) -> None:
    assert run([30.0, 38.0, 46.0], trainer(epochs=1, batches=20)) == ""
    assert run([30.0, 31.0, 32.0], trainer()) == "", "two seconds are too few to tell"
    assert run([30.0, 38.0, 46.0], trainer(batches=float("inf"))) == ""


@pytest.mark.parametrize(("steps", "told"), [(100, False), (1000, True)])
def test_a_limit_of_steps_counts(run: Any, steps: int, told: bool) -> None:
    assert bool(run([0.0, 10.0], trainer(max_steps=steps))) is told
    assert run([0.0, 10.0], trainer(max_steps=100, each=8)) != "", "800 batches"


def test_batches_that_compile_do_not_count(run: Any) -> None:
    seconds = [0.0, 90.0, 90.0, 90.0]
    modules = [SimpleNamespace(recorded=SimpleNamespace(seconds=each)) for each in seconds]
    text = run([1.0, 100.0, 105.0, 110.0], trainer(batches=1000), modules)
    assert text.startswith("At the pace of the first 2 batches, this takes 83 h")


def test_it_is_one_of_the_lines_of_progress() -> None:
    assert any(isinstance(each, PaceLine) for each in progress_callbacks())
