"""The averaged weights are those that Lightning's callback keeps."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from asap_exp.core.tensors import load_tensors
from asap_exp.engine import building
from tests.stages import run_train


@pytest.mark.slow
def test_average_is_that_of_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("recipe.ema_decay=0.7", "recipe.keep=last")
    ours = load_tensors(run_train(tmp_path / "ours", *options).weights)
    monkeypatch.setattr(building, "Averaging", EMAWeightAveraging)
    theirs = load_tensors(run_train(tmp_path / "theirs", *options).weights)
    plain = load_tensors(run_train(tmp_path / "plain", "recipe.keep=last").weights)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    assert any((weight - plain[name]).abs().max() > 1e-3 for name, weight in ours.items())
