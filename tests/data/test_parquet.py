"""Local Parquet files: names of shards, and errors about unusable files."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from asap_exp.core.errors import UserError
from asap_exp.data.catalog import IMAGE_DATASETS, TEXT_DATASETS
from asap_exp.data.parquet import parquet_files, read_parts
from asap_exp.data.raw_texts import load_texts
from asap_exp.data.sources import load_images
from tests.data.parquet import make_pixels, write_parquet, write_texts

CIFAR10, AGNEWS = IMAGE_DATASETS["cifar10"], TEXT_DATASETS["agnews"]
HASH = "0f1e2d3c4b5a6978"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ASAP_EXP_CACHE", str(tmp_path / "cache"))


def touched(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "names",
    [
        (f"train-00000-of-00001-{HASH}.parquet",),
        (f"train-00000-of-00002-{HASH}.parquet", f"train-00001-of-00002-{HASH[::-1]}.parquet"),
        ("train-00000-of-00002 (1).parquet", "train-00001-of-00002.parquet"),
        ("train-00000-of-00002(1).parquet", f"train-00001-of-00002-{HASH} (2).parquet"),
        ("train (1).parquet",),
        ("train.parquet",),
        ("train-0.parquet", "train-1.parquet"),
    ],
    ids=lambda names: names[0],
)
def test_shards_are_found_as_hubs_and_browsers_name_them(tmp_path, names):
    folder = touched(tmp_path, *names, "trainer.parquet", "test.parquet", "train.txt")
    assert [file.name for file in parquet_files(folder, "train")] == list(names)


def test_rows_of_a_shard_with_a_hash(tmp_path):
    pixels = make_pixels(8)
    file = tmp_path / "cifar10" / f"train-00000-of-00001-{HASH}.parquet"
    write_parquet(file, CIFAR10, pixels, list(range(8)))
    images = load_images(CIFAR10, "train", str(tmp_path), None)
    assert images.labels.tolist() == list(range(8))
    assert torch.equal(images.pixels, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((f"train-00000-of-00002-{HASH}.parquet",), "1 shards of train.*names say 00002"),
        (
            ("train-00000-of-00002.parquet", "train-00000-of-00002 (1).parquet"),
            "are the same shard",
        ),
        (("train-00000-of-00001.parquet", "train-00000-of-00002.parquet"), "are the same shard"),
        (("train (1).parquet", "train (2).parquet"), "are both the split train"),
    ],
)
def test_shards_that_are_not_the_split_are_named(tmp_path, names, words):
    with pytest.raises(UserError, match=words):
        parquet_files(touched(tmp_path, *names), "train")


@pytest.mark.parametrize("name", ["train.parquet", "train-00000-of-00001.parquet"])
def test_folder_or_broken_link_in_the_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / "folder" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name} is a folder, where a Parquet file is expected"):
        parquet_files(tmp_path / "folder", "train")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"{name} is a link to nothing"):
        parquet_files(tmp_path / "link", "train")


def agnews(root: Path, split: str = "train") -> Path:
    file = root / "ag_news" / f"{split}.parquet"
    write_texts(file, AGNEWS, [f"text {i}" for i in range(20)], [i % 4 for i in range(20)])
    return file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "it is a web page"),
        (b"text,label\nhello,1\n" * 9, "not a Parquet file, or is damaged"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_file_that_is_no_parquet_is_named_with_its_cause(tmp_path, content, words):
    file = agnews(tmp_path)
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load_texts(AGNEWS, "train", str(tmp_path), None)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("size", [0.5, 0.95])
def test_truncated_file_is_named(tmp_path, size):
    file = agnews(tmp_path)
    file.write_bytes(file.read_bytes()[: int(size * file.stat().st_size)])
    with pytest.raises(UserError, match=r"train\.parquet is not a Parquet file, or is damaged"):
        load_texts(AGNEWS, "train", str(tmp_path), None)


def test_damaged_page_is_seen_where_the_file_has_checksums(tmp_path):
    file = tmp_path / "train.parquet"
    table = pa.table({"text": [f"row {row} of no great length" for row in range(9)]})
    pq.write_table(table, file, write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[content.index(b"row 5")] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="CRC"):
        read_parts([file], ["text"])


def test_missing_column_is_named_with_those_there_are(tmp_path):
    file = tmp_path / "ag_news" / "train.parquet"
    file.parent.mkdir()
    pq.write_table(pa.table({"text": ["a"], "topic": [1]}), file)
    with pytest.raises(UserError) as error:
        load_texts(AGNEWS, "train", str(tmp_path), None)
    assert f"{file} has no column label; its columns are text, topic" in str(error.value)
    assert "NoneType" not in str(error.value)


def test_column_that_is_there_twice_is_named(tmp_path):
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table([[1], [2], [3]], names=["label", "text", "label"]), file)
    with pytest.raises(UserError, match="has two columns label"):
        read_parts([file], ["text", "label"])


def test_split_without_rows_is_refused_and_a_shard_without_rows_is_none(tmp_path):
    first, second = (tmp_path / "ag_news" / f"train-{i}-of-2.parquet" for i in range(2))
    write_texts(first, AGNEWS, ["one", "two"], [1, 2])
    write_texts(second, AGNEWS, [], [])
    assert load_texts(AGNEWS, "train", str(tmp_path), None).labels == [1, 2]
    pq.write_table(pa.table({}), second)
    assert load_texts(AGNEWS, "train", str(tmp_path), None).texts == ["one", "two"]
    write_texts(first, AGNEWS, [], [])
    with pytest.raises(UserError, match=r"train-0-of-2\.parquet and .*no rows found"):
        load_texts(AGNEWS, "train", str(tmp_path), None)


def test_missing_split_is_no_error_of_another(tmp_path):
    agnews(tmp_path)
    with pytest.raises(UserError, match=r"no test\.parquet or test-\*\.parquet in"):
        load_texts(AGNEWS, "test", str(tmp_path), None)


@pytest.mark.parametrize("dataset", [CIFAR10, AGNEWS], ids=lambda d: d.name)
def test_file_replaced_under_the_same_name_size_and_time_is_read_anew(tmp_path, dataset):
    def write(value: int) -> Path:
        if dataset is AGNEWS:
            file = tmp_path / "ag_news" / "train.parquet"
            write_texts(file, dataset, [f"text {value}"] * 8, [value] * 8)
        else:
            file = tmp_path / "cifar10" / "train.parquet"
            black = make_pixels(2) * 0
            black[value % 2, 1, 1] = black[1 - value % 2, 2, 2] = 255
            write_parquet(file, dataset, black[::-1], [value] * 2)
        os.utime(file, (10**9, 10**9))
        return file

    def loaded() -> tuple[int, str]:
        if dataset is AGNEWS:
            raw = load_texts(dataset, "train", str(tmp_path), None)
            return raw.labels[0], raw.texts[0]
        images = load_images(dataset, "train", str(tmp_path), None)
        return int(images.labels[0]), f"text {images.pixels[0, 0].diagonal().argmax()}"

    size = write(1).stat().st_size
    assert loaded() == (1, "text 1")
    assert write(2).stat().st_size == size
    assert loaded() == (2, "text 2")
