"""Cats & Dogs: local copies with their own split, or undivided full images of several sizes."""

import urllib.error
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_json
from asap_exp.data import ImageDataModule, sources
from asap_exp.data.catalog import IMAGE_DATASETS
from asap_exp.data.sources import load_images
from asap_exp.data.subset import Limit
from asap_exp.data.undivided import rows_in_all
from tests.composed import composed
from tests.data.own.made import write_folder
from tests.data.parquet import encoded
from tests.fake_runs import fake_manifest
from tests.stages import SINKHORN, TINY, train_config

CATSDOGS = IMAGE_DATASETS["catsdogs"]
LABELS = np.random.default_rng(5).permutation(np.repeat([0, 1], [20, 30]))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)
    monkeypatch.setenv("ASAP_EXP_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def picture(number: int, width: int, height: int) -> np.ndarray:
    """One colour that tells the number, whatever is done to the size."""
    return np.full((height, width, 3), (number, 7, 200), dtype=np.uint8)


def write(file: Path, rows: np.ndarray, *, several_sizes: bool = False) -> None:
    images = [picture(n, 72 + 9 * (n % 3) * several_sizes, 72) for n in rows.tolist()]
    features = {"image": datasets.Image(), "labels": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {"image": [encoded(x, "PNG") for x in images], "labels": LABELS[rows].tolist()}
    file.parent.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.to_parquet(str(file))


def numbers(pixels: torch.Tensor) -> list[int]:
    return pixels[:, 0, 0, 0].tolist()


def undivided(root: Path) -> Path:
    """A folder as scripts/download_data.py makes it of the hub's full images."""
    write(root / "cats_vs_dogs" / "train.parquet", np.arange(len(LABELS)), several_sizes=True)
    return root


def divided(root: Path) -> Path:
    write(root / "cats_vs_dogs" / "train.parquet", np.arange(40))
    write(root / "cats_vs_dogs" / "test.parquet", np.arange(40, 50))
    return root


def module(root: Path, *overrides: str, folder: Path | None = None) -> ImageDataModule:
    given = ["task=catsdogs", f"data.root={root}", *overrides]
    config = composed("train", given, TrainConfig)
    return ImageDataModule(config.data, batch_size=8, seed=0, folder=folder)


def test_local_copies_keep_their_own_split(tmp_path: Path) -> None:
    root = divided(tmp_path)
    train, test = (load_images(CATSDOGS, split, str(root), None) for split in ("train", "test"))
    assert (numbers(train.pixels), numbers(test.pixels)) == ([*range(40)], [*range(40, 50)])
    assert train.source == "local Parquet files, 72 x 72 (100%) pixels"
    assert train.undivided is None
    assert train.names == ("cat", "dog")


def test_an_undivided_source_is_divided_by_class_and_always_alike(tmp_path: Path) -> None:
    root = undivided(tmp_path)
    train, test = (
        load_images(CATSDOGS, split, str(root), None, size=48) for split in ("train", "test")
    )
    found = numbers(train.pixels), numbers(test.pixels)
    assert sorted(found[0] + found[1]) == list(range(50))
    assert found == (sorted(found[0]), sorted(found[1])), "in their stored order"
    assert torch.bincount(test.labels).tolist() == [4, 6], "a fifth of each class"
    for images, rows in ((train, found[0]), (test, found[1])):
        assert images.labels.tolist() == LABELS[rows].tolist()
        assert images.pixels.shape[1:] == (3, 48, 48)
    again = module(root, "data.split_seed=3", "data.image_size=72")
    again.setup()
    assert numbers(again.test_dataloader().images.pixels) == found[1]


def test_the_record_says_which_images_and_how_they_were_divided(tmp_path: Path) -> None:
    data = module(undivided(tmp_path))
    data.setup()
    data.test_dataloader()
    said = data.identity["source"]
    assert isinstance(said, str)
    assert said.startswith("local Parquet files, 72 x 72 (")
    assert "81 x 72" in said
    assert said.endswith("; 20% of each class is the test split, seed 0")
    assert (data.identity["train_split_rows"], data.identity["test_rows"]) == (40, 10)
    # Neither the hub's number of rows nor Kaggle's: a subset of the latter.
    assert (data.identity["train_split_rows_in_all"], data.identity["test_rows_in_all"]) == (
        20_000,
        5_000,
    )


@pytest.mark.parametrize(
    ("rows", "train", "test"), [(23_410, 18_728, 4_682), (25_000, 20_000, 5_000)]
)
def test_complete_undivided_sources_are_no_subsets(rows: int, train: int, test: int) -> None:
    assert rows_in_all(CATSDOGS, rows) == {"train": train, "test": test}
    assert rows_in_all(CATSDOGS, rows - 1) == {"train": 20_000, "test": 5_000}


def test_the_hub_is_asked_for_training_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = undivided(tmp_path) / "cats_vs_dogs" / "train.parquet"
    asked, real = [], datasets.load_dataset

    def hub(path: str, *, split: str, cache_dir: str) -> Any:
        asked.append((path, split))
        return real("parquet", data_files=str(file), split="train", cache_dir=cache_dir)

    monkeypatch.setattr(sources, "require_reachable", lambda url: None)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    train, test = (load_images(CATSDOGS, s, None, None, size=72) for s in ("train", "test"))
    assert asked == [("microsoft/cats_vs_dogs", "train")] * 2
    assert sorted(numbers(train.pixels) + numbers(test.pixels)) == list(range(50))
    assert train.source.startswith("Hugging Face hub, microsoft/cats_vs_dogs, 72 x 72 (")


def test_a_limit_takes_rows_of_the_split_alone(tmp_path: Path) -> None:
    root = str(undivided(tmp_path))
    test = numbers(load_images(CATSDOGS, "test", root, None, size=8).pixels)
    few = numbers(load_images(CATSDOGS, "train", root, None, Limit(10), 8).pixels)
    assert len(few) == 10
    assert not {*few} & {*test}


def test_a_test_split_without_its_training_split_is_refused(tmp_path: Path) -> None:
    root = divided(tmp_path)
    (root / "cats_vs_dogs" / "train.parquet").unlink()
    for split in ("train", "test"):
        with pytest.raises(UserError, match="has a test split of catsdogs and no training split"):
            load_images(CATSDOGS, split, str(root), None)


def test_a_model_of_other_images_is_not_tested_on_what_it_may_have_seen(tmp_path: Path) -> None:
    mine, others = divided(tmp_path / "mine"), undivided(tmp_path / "others")
    data = module(mine)
    data.setup()
    run = tmp_path / "run"
    config = composed("train", ["task=catsdogs"], TrainConfig)
    manifest = fake_manifest(config, {}, "2026-01-01T00:00:00+00:00")
    write_json(run / "manifest.json", manifest | {"data": data.identity})
    data.save(run)
    assert len(module(mine, folder=run).test_dataloader().images.labels) == 10
    with pytest.raises(UserError, match=r"the test images may be among the latter; set data\.root"):
        module(others, folder=run).test_dataloader()


def test_images_of_one_size_are_still_required_elsewhere(tmp_path: Path) -> None:
    plain = replace(CATSDOGS, several_sizes=False)
    with pytest.raises(UserError, match=r"has 90 x 72 pixels, the first one 72 x 72"):
        load_images(plain, "train", str(undivided(tmp_path)), None)


def test_the_task_trains_on_a_folder_of_images_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pets", classes=("Cat", "Dog"), size=(90, 80))
    given = ("task=catsdogs_folder", f"data.path={folder}")
    request = composed("train", list(given), TrainConfig)
    usual = composed("train", ["task=catsdogs"], TrainConfig)
    assert asdict(request.model) == asdict(usual.model)
    assert request.recipe == usual.recipe
    assert request.data.image_size == usual.data.image_size
    assert request.data.name == "auto"


@pytest.mark.slow
def test_the_task_trains(tmp_path: Path) -> None:
    from asap_exp.train.trainer import train

    tiny = ("task=catsdogs", *TINY[1:], "model.patch_size=36", "recipe.batch_size=8")
    root = undivided(tmp_path / "data")
    run = train(train_config(tmp_path, f"data.root={root}", attention=SINKHORN, tiny=tiny))
    assert run.finished_manifest() is not None
    assert run.name.startswith("catsdogs/vit-sinkhorn/")
