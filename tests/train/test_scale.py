"""The recipe for ImageNet-size data on many devices, shrunk: two processes, small images."""

from pathlib import Path

import pytest

from asap_exp.core.runs import Run
from asap_exp.train.__main__ import run
from tests.data.own.made import request, write_folder
from tests.several import in_ranks

SHRUNK = (
    "experiment=imagenet",
    "logger=csv",
    "callbacks.progress_bar=false",
    "callbacks.diagnostic_samples=8",
    "data.image_size=16",
    "data.augment.crop_padding=2",
    "data.placement=host",
    "model.patch_size=4",
    "model.dim=16",
    "model.heads=2",
    "model.depth=2",
    "recipe.batch_size=16",
    "recipe.epochs=10",
    "recipe.warmup_epochs=1",
    "trainer.devices=2",
    "trainer.accelerator=cpu",
    "trainer.cpu_threads=1",
)


@pytest.mark.slow
def test_recipe_trains_on_two_devices_from_main_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)
    write_folder(tmp_path / "images")
    where = (f"paths.results={tmp_path / 'results'}", f"data.cache={tmp_path / 'cache'}")
    config = request("images", tmp_path / "images", *SHRUNK, *where)
    ended = in_ranks(lambda: run(config).value, seconds=120)
    for one in ended:
        assert one is not None
        assert not one.error, one.printed
    (file,) = (tmp_path / "results").glob("runs/*/*/*/manifest.json")
    trained = Run(file.parent)
    assert trained.finished
    assert trained.config.recipe.ema_decay == 0.9999
