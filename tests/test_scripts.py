"""The scripts: what reproduces a task, and what fetches data, without any training or network."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import pytest

from asap_exp.composing import compose
from asap_exp.config import DistillConfig, EvaluateConfig, TrainConfig
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


class Done:
    """What `main` of reproduce.py would have done, its stages left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
        self.trained: list[TrainConfig] = []
        self.distilled: list[DistillConfig] = []
        self.evaluated: list[EvaluateConfig] = []
        module = script("reproduce")
        monkeypatch.setattr(module, "train", self.train)
        monkeypatch.setattr(module, "distill", self.distill)
        monkeypatch.setattr(module, "evaluate", self.evaluated.append)
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
        module.main()

    def train(self, config: TrainConfig) -> SimpleNamespace:
        self.trained.append(config)
        return SimpleNamespace(path=Path(f"run{len(self.trained)}"))

    def distill(self, config: DistillConfig) -> Path:
        self.distilled.append(config)
        return Path(f"map{len(self.distilled)}")


def test_softmax_and_sinkhorn_start_from_encoders_trained_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = Done(
        monkeypatch,
        *("imdb", "model.depth=2", "--pretrain", "recipe.epochs=20", "--seeds", "3"),
        *("--results", "elsewhere"),
    )
    trained = done.trained
    assert [c.task.name for c in trained] == ["imdb_mlm", "imdb"] * 2
    assert [c.attention["name"] for c in trained] == ["softmax"] * 2 + ["sinkhorn"] * 2
    assert [c.init_from for c in trained] == [None, "run1", None, "run3"]
    assert {c.seed for c in trained} == {3}
    assert [c.recipe.epochs for c in trained[::2]] == [20, 20]
    assert [c.model.depth for c in trained[1::2]] == [2, 2]
    assert [c.calibration.name for c in done.distilled] == ["ridge", *["end_to_end"] * 3]
    assert [c.calibration.seed for c in done.distilled[1:]] == [1, 2, 0]
    assert {c.teacher for c in done.distilled} == {"run4"}
    (evaluation,) = done.evaluated
    assert (evaluation.artifact, evaluation.maps) == ("map4", "all")
    assert {c.paths.results for c in (*trained, *done.distilled, evaluation)} == {"elsewhere"}


def test_one_attention_alone_is_trained_and_softmax_has_no_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    softmax = Done(monkeypatch, "cifar", "--train", "softmax")
    assert {c.attention["name"] for c in softmax.trained} == {"softmax"}
    assert not softmax.distilled
    assert not softmax.evaluated
    sinkhorn = Done(monkeypatch, "cifar", "--train", "sinkhorn")
    assert [c.attention["name"] for c in sinkhorn.trained] == ["sinkhorn"] * 2
    assert [c.calibration.name for c in sinkhorn.distilled] == ["ridge"] * 2
    assert [c.maps for c in sinkhorn.evaluated] == ["one"] * 2


def test_every_task_that_can_be_reproduced_composes() -> None:
    module = script("reproduce")
    for task, recipes in module.RECIPES.items():
        for recipe in recipes:
            assert compose("train", recipe, TrainConfig)
        for calibration in module.CALIBRATIONS.get(task, ()):
            assert compose("distill", calibration, DistillConfig)
        assert compose("evaluate", module.EVALUATIONS.get(task, []), EvaluateConfig)
        if task in module.INITIAL:
            first = compose("train", [module.INITIAL[task]], TrainConfig)
            fine = compose("train", recipes[0], TrainConfig)
            weightless = {"dropout": 0.0, "drop_path": 0.0}
            if first.task.name != "cifar":
                weightless["pooling"] = "mean"
            assert replace(first.model, **weightless) == replace(fine.model, **weightless)
            if first.task.name != "cifar":
                for key in ("name", "vocab_size", "lowercase", "max_length"):
                    assert getattr(first.data, key) == getattr(fine.data, key)


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
