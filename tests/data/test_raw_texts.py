"""Text columns of every type, and rows without a text."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap_exp.core.errors import UserError
from asap_exp.data.catalog import TEXT_DATASETS
from asap_exp.data.raw_texts import check_texts, load_texts

AGNEWS, IMDB, WIKITEXT = (TEXT_DATASETS[name] for name in ("agnews", "imdb", "wikitext2"))
TEXTS = ["one", "", "three — 三", "x" * 5000]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ASAP_EXP_CACHE", str(tmp_path / "cache"))


def write(root: Path, texts: pa.Array, dataset=AGNEWS, split: str = "train") -> Path:
    columns = {dataset.text_column: texts}
    if dataset.num_classes:
        columns["label"] = pa.array([i % 2 for i in range(len(texts))])
    file = root / dataset.folders[0] / f"{split}.parquet"
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()],
    ids=str,
)
def test_texts_are_the_same_in_every_type(tmp_path, kind):
    plain = load_texts(AGNEWS, "train", str(write(tmp_path, pa.array(TEXTS)).parents[1]), None)
    write(tmp_path, pa.array([text.encode() for text in TEXTS]).cast(kind))
    found = load_texts(AGNEWS, "train", str(tmp_path), None)
    assert found.texts == TEXTS
    assert found.sha256 == plain.sha256


def test_texts_of_a_dictionary_are_its_entries(tmp_path):
    write(tmp_path, pa.array(["a", "b", "a"]).dictionary_encode())
    assert load_texts(AGNEWS, "train", str(tmp_path), None).texts == ["a", "b", "a"]


@pytest.mark.parametrize("dataset", [AGNEWS, IMDB, WIKITEXT], ids=lambda d: d.name)
@pytest.mark.parametrize("row", [0, 2])
def test_row_without_text_is_named(tmp_path, dataset, row):
    texts: list[str | None] = ["a", "b", "c"]
    texts[row] = None
    file = write(tmp_path, pa.array(texts), dataset)
    with pytest.raises(UserError) as error:
        load_texts(dataset, "train", str(tmp_path), None)
    message = str(error.value)
    assert f"column text has no text in row {row} (counted from 0) of {file}" in message
    assert "download_data" not in message


def test_test_split_without_text_is_found_before_training(tmp_path):
    write(tmp_path, pa.array(["a", None]), split="test")
    with pytest.raises(UserError, match=r"row 1 .*test\.parquet"):
        check_texts(AGNEWS, "test", str(tmp_path), None)


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [0.5, None]], ids=repr)
def test_column_of_something_else_is_named_with_its_type(tmp_path, values):
    write(tmp_path, pa.array(values))
    with pytest.raises(UserError, match=r"column text of .*train\.parquet holds .*not texts"):
        load_texts(AGNEWS, "train", str(tmp_path), None)


def test_column_of_nothing_but_nulls_has_no_text(tmp_path):
    write(tmp_path, pa.array([None, None]))
    with pytest.raises(UserError, match="has no text in row 0"):
        load_texts(AGNEWS, "train", str(tmp_path), None)


def test_bytes_that_are_no_text_are_named(tmp_path):
    write(tmp_path, pa.array([b"fine", b"caf\xe9"]))
    with pytest.raises(UserError, match=r"not UTF-8 .*in row 1 \(counted from 0\)"):
        load_texts(AGNEWS, "train", str(tmp_path), None)


def test_missing_test_split_is_no_fault_before_training(tmp_path):
    write(tmp_path, pa.array(["a"]))
    check_texts(AGNEWS, "test", str(tmp_path), None)


def write_named(root: Path, split: str, texts: list[str], labels: list[int], names: list[str]):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    rows = datasets.Dataset.from_dict(
        {"text": texts, "label": labels}, features=datasets.Features(features)
    )
    (root / "ag_news").mkdir(exist_ok=True)
    rows.to_parquet(str(root / "ag_news" / f"{split}.parquet"))


@pytest.mark.parametrize(
    "names",
    [["World", "Sports", "Business", "Sci/Tech"], ["d", "c", "b", "a"]],
    ids=lambda names: names[0],
)
def test_classes_of_test_split_and_shards_are_known_by_name(tmp_path, names):
    order = np.array([2, 0, 3, 1])
    other = [names[i] for i in order]
    labels = [0, 1, 2, 3, 3]
    in_other = [other.index(names[label]) for label in labels]
    texts = [names[label] for label in labels]
    write_named(tmp_path, "train-00000-of-00002", texts, labels, names)
    write_named(tmp_path, "train-00001-of-00002", texts, in_other, other)
    write_named(tmp_path, "test", texts, in_other, other)
    train = load_texts(AGNEWS, "train", str(tmp_path), None)
    assert train.labels == labels * 2
    assert train.names == tuple(names)
    assert load_texts(AGNEWS, "test", str(tmp_path), None).labels == labels
