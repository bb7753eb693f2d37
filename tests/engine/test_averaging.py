"""The averaged weights are those that Lightning's callback keeps."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

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


def test_whole_numbers_are_not_averaged() -> None:
    """Of 14 and 14, averaged by 0.9 and 0.1 in float32 and cut off, Lightning makes 13."""
    module = L.LightningModule()
    module.net = nn.Linear(2, 2)
    module.register_buffer("indices", torch.arange(200))
    callback = building.Averaging(device=torch.device("cpu"), decay=0.9)
    callback.setup(None, module, "fit")
    callback.on_train_start(None, module)
    before = module.net.weight.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            module.net.weight.add_(1)
        callback.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, step)
    average = callback._average_model.module
    assert torch.equal(average.indices, torch.arange(200))
    # The first average is the weights themselves; then each step adds 1 - 0.9 of what is between.
    expected = 1.0
    for value in (2, 3, 4):
        expected += 0.1 * (value - expected)
    torch.testing.assert_close(average.net.weight.detach(), before + expected)
