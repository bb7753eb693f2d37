"""Hub data sets prepared by an earlier run are used without a network if undamaged."""

import json
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap_exp.core.errors import UserError
from asap_exp.data import sources
from asap_exp.data.catalog import IMAGE_DATASETS, TEXT_DATASETS, Dataset
from asap_exp.data.raw_texts import check_texts, load_texts
from asap_exp.data.sources import check_labels, load_images
from tests.data.parquet import make_pixels, write_parquet, write_texts

AGNEWS, IMDB, WIKITEXT = (TEXT_DATASETS[name] for name in ("agnews", "imdb", "wikitext2"))
CIFAR100 = IMAGE_DATASETS["cifar100"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)
    monkeypatch.setenv("ASAP_EXP_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def prepared(root: Path, dataset: Dataset, **files: Path) -> Path:
    """Fill the cache as `datasets` does after downloading these Parquet files."""
    assert dataset.hub is not None
    repository, *configuration = dataset.hub
    owner, name = repository.split("/")
    ready = datasets.load_dataset(
        "parquet",
        data_files={split: str(file) for split, file in files.items()},
        cache_dir=str(root / "made"),
    )
    source = Path(next(iter(ready.values())).cache_files[0]["filename"]).parent
    config = configuration[0] if configuration else "default"
    target = root / "cache" / "datasets" / f"{owner}___{name}" / config / "0.0.0" / ("a" * 40)
    target.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copy(file, target / file.name.replace("parquet-", f"{name}-"))
    info = json.loads((target / "dataset_info.json").read_text())
    version = {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}
    info |= {"dataset_name": name, "config_name": config, "version": version}
    for split in info["splits"].values():
        split["dataset_name"] = name
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def texts(root: Path, dataset, split: str = "train", labels=(0, 1, 1)) -> Path:
    file = root / f"{dataset.name}-{split}.parquet"
    write_texts(file, dataset, [f"text {i}" for i in range(len(labels))], list(labels))
    return file


@pytest.mark.parametrize("dataset", [AGNEWS, IMDB, WIKITEXT], ids=lambda d: d.name)
def test_prepared_texts_need_no_network(tmp_path, dataset):
    prepared(tmp_path, dataset, train=texts(tmp_path, dataset), test=texts(tmp_path, dataset))
    raw = load_texts(dataset, "train", None, str(tmp_path / "cache"))
    assert raw.texts == ["text 0", "text 1", "text 2"]
    assert raw.labels == ([0, 1, 1] if dataset.num_classes else [0, 0, 0])
    assert raw.source == f"Hugging Face hub, {' '.join(dataset.hub)}"
    assert load_texts(dataset, "test", None, None).sha256 == raw.sha256


def test_prepared_images_need_no_network(tmp_path):
    file = tmp_path / "train.parquet"
    write_parquet(file, CIFAR100, make_pixels(3), [5, 0, 99])
    prepared(tmp_path, CIFAR100, train=file, test=file)
    assert load_images(CIFAR100, "train", None, None).labels.tolist() == [5, 0, 99]
    check_labels(CIFAR100, "test", None, None)


def test_prepared_copy_is_used_too_where_the_hub_refuses(tmp_path, monkeypatch):
    prepared(tmp_path, AGNEWS, train=texts(tmp_path, AGNEWS))

    def refuse(*arguments, **options):
        raise ConnectionError("too many requests")

    monkeypatch.setattr(sources, "require_reachable", lambda url: None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert load_texts(AGNEWS, "train", None, None).labels == [0, 1, 1]


def test_split_that_was_not_prepared_is_not_found(tmp_path):
    prepared(tmp_path, AGNEWS, train=texts(tmp_path, AGNEWS))
    with pytest.raises(UserError, match=r"Hugging Face hub: huggingface\.co was not reached"):
        load_texts(AGNEWS, "test", None, None)
    with pytest.raises(UserError, match=r"Hugging Face hub: huggingface\.co was not reached"):
        load_texts(IMDB, "train", None, None)


def test_labels_of_a_prepared_test_split_are_checked(tmp_path):
    test = texts(tmp_path, AGNEWS, "test", labels=(-1, -1))
    prepared(tmp_path, AGNEWS, train=texts(tmp_path, AGNEWS), test=test)
    load_texts(AGNEWS, "train", None, None)
    with pytest.raises(UserError, match=r"has -1 in row 0 .*Hugging Face hub, fancyzhx/ag_news"):
        check_texts(AGNEWS, "test", None, None)


def test_damaged_copy_is_refused_without_a_network(tmp_path):
    folder = prepared(tmp_path, AGNEWS, train=texts(tmp_path, AGNEWS))
    assert load_texts(AGNEWS, "train", None, None).texts[0] == "text 0"
    (arrow,) = folder.glob("*train.arrow")
    content = bytearray(arrow.read_bytes())
    content[content.index(b"text 0")] ^= 1
    arrow.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.arrow has changed since it was prepared") as error:
        load_texts(AGNEWS, "train", None, None)
    assert f"remove {folder} and run" in str(error.value)


def test_damaged_copy_is_made_again_with_a_network(tmp_path, monkeypatch):
    real, asked = datasets.load_dataset, []
    file = texts(tmp_path, AGNEWS)

    def hub(*name: str, split: str, cache_dir: str, **options: str):
        asked.append(options)
        return real("parquet", data_files=str(file), split="train", cache_dir=cache_dir, **options)

    monkeypatch.setattr(sources, "require_reachable", lambda url: None)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    first = load_texts(AGNEWS, "train", None, None).texts
    (arrow,) = (tmp_path / "cache" / "datasets").rglob("*train.arrow")
    content = bytearray(arrow.read_bytes())
    content[content.index(b"text 0")] ^= 1
    arrow.write_bytes(content)
    assert load_texts(AGNEWS, "train", None, None).texts == first
    assert load_texts(AGNEWS, "train", None, None).texts == first
    assert [len(options) for options in asked] == [0, 0, 1, 0]


def named_texts(file: Path, names: list[str], labels=(0, 1, 2, 3)) -> Path:
    label = datasets.ClassLabel(names=names)
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = {"text": [names[i] for i in labels], "label": list(labels)}
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file


def test_prepared_names_in_another_order_are_those_of_the_labels(tmp_path):
    other = ["Sci/Tech", "World", "Business", "Sports"]
    file = named_texts(tmp_path / "train.parquet", other)
    prepared(tmp_path, AGNEWS, train=file, test=file)
    raw = load_texts(AGNEWS, "train", None, None)
    assert raw.names == AGNEWS.class_names
    assert [raw.names[label] for label in raw.labels] == raw.texts
    again = replace(AGNEWS, trained_names=raw.names)
    assert load_texts(again, "train", None, None).sha256 == raw.sha256


def test_prepared_training_split_orders_a_test_split_from_elsewhere(tmp_path):
    prepared(tmp_path, AGNEWS, train=named_texts(tmp_path / "train.parquet", list("abcd")))
    named_texts(tmp_path / "local" / "ag_news" / "test.parquet", list("dcba"))
    assert load_texts(AGNEWS, "train", None, None).labels == [0, 1, 2, 3]
    test = load_texts(AGNEWS, "test", str(tmp_path / "local"), None)
    assert (test.texts, test.labels) == (list("dcba"), [3, 2, 1, 0])


@pytest.mark.parametrize("empty", [False, True])
def test_names_of_a_later_shard_order_the_test_split(tmp_path, empty):
    folder = tmp_path / "ag_news"
    folder.mkdir()
    plain = pa.table({"text": ["a"], "label": pa.array([0])})
    pq.write_table(plain[:0] if empty else plain, folder / "train-00000-of-00002.parquet")
    named_texts(folder / "train-00001-of-00002.parquet", list("abcd"))
    named_texts(folder / "test.parquet", list("dcba"))
    train, test = (load_texts(AGNEWS, split, str(tmp_path), None) for split in ("train", "test"))
    assert train.names == tuple("abcd")
    for raw in (train, test):
        assert [raw.names[label] for label in raw.labels] == raw.texts


def test_prepared_numbers_that_are_names_are_read(tmp_path):
    file = named_texts(tmp_path / "train.parquet", list("1234"))
    prepared(tmp_path, AGNEWS, train=file)
    raw = load_texts(AGNEWS, "train", None, None)
    assert (raw.labels, raw.names) == ([0, 1, 2, 3], tuple("1234"))
