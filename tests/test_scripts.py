"""The scripts: what reproduces a task, and what fetches data, without any training or network."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import pytest

from asap_exp.composing import compose
from asap_exp.config import TrainConfig
from asap_exp.data.catalog import DATASETS, TEXT_DATASETS
from asap_exp.data.texts import load_texts
from tests.data.sentences import make_texts

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reproduced(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """`main` of reproduce.py for `imdb`, with its stages left out: what it would train."""
    module, trained = script("reproduce"), []

    def train(config: TrainConfig) -> SimpleNamespace:
        trained.append(config)
        return SimpleNamespace(path=Path(f"run{len(trained)}"))

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "distill", lambda config: config.teacher)
    monkeypatch.setattr(module, "evaluate", lambda config: None)
    words = [
        "reproduce.py",
        "imdb",
        "model.depth=2",
        "--pretrain",
        "recipe.epochs=20",
        "--seeds",
        "3",
    ]
    monkeypatch.setattr(sys, "argv", words)
    module.main()
    return trained


def test_softmax_and_sinkhorn_start_from_encoders_trained_alike(
    reproduced: list[TrainConfig],
) -> None:
    assert [c.task.name for c in reproduced] == ["imdb_mlm", "imdb_mlm", "imdb", "imdb"]
    assert [c.attention["name"] for c in reproduced] == ["softmax", "sinkhorn"] * 2
    assert [c.init_from for c in reproduced] == [None, None, "run1", "run2"]
    assert {c.seed for c in reproduced} == {3}
    assert [c.recipe.epochs for c in reproduced[:2]] == [20, 20]
    assert reproduced[2].model.depth == 2


def test_every_task_that_can_be_reproduced_composes() -> None:
    module = script("reproduce")
    for task, recipes in module.RECIPES.items():
        for recipe in recipes:
            assert compose("train", recipe, TrainConfig)
        if task in module.PRETRAINED:
            mlm = compose("train", [f"task={task}_mlm"], TrainConfig)
            fine = compose("train", recipes[0], TrainConfig)
            for key in ("name", "vocab_size", "lowercase", "max_length"):
                assert getattr(mlm.data, key) == getattr(fine.data, key)
            for key in ("dim", "depth", "heads", "positions", "qk_norm", "norm", "mlp_ratio"):
                assert getattr(mlm.model, key) == getattr(fine.model, key)


@pytest.mark.parametrize("name", ["agnews", "wikitext2"])
def test_fetched_texts_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module, dataset = script("download_data"), TEXT_DATASETS[name]
    texts, labels = make_texts(30, dataset.num_classes)
    asked = []

    def hub(*where: str, split: str) -> datasets.Dataset:
        asked.append((*where, split))
        columns = {"text": texts} | ({"label": labels} if dataset.num_classes else {})
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(module, "require_reachable", lambda url: None)
    module.download(dataset, tmp_path)
    assert asked == [(*dataset.hub, split) for split in dataset.rows]
    monkeypatch.undo()
    assert load_texts(dataset, "train", str(tmp_path), str(tmp_path / "cache")).texts == texts


def test_every_data_set_on_the_hub_can_be_fetched() -> None:
    fetched = [d.name for d in DATASETS.values() if d.hub]
    assert fetched == ["cifar100", "cifar10", "agnews", "dbpedia", "yelp", "imdb", "wikitext2"]
