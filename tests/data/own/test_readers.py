"""Rows of Parquet, CSV and JSON lines files, of image folders, and of a copy of a hub data set."""

import gzip
import json
import urllib.request

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap_exp.core.errors import DataNotFound, UserError
from asap_exp.data import hub, parquet
from asap_exp.data.own.opening import open_own
from asap_exp.data.own.text_files import read_table
from tests.data.own.made import sentences, write_csv, write_folder, write_images, write_json_lines


def values(reader, split, column, rows=None) -> list:
    parts = reader.read(split, [column], rows)
    return [value for part in parts for value in part.table[column].to_pylist()]


def opened(path, tmp_path, kind="texts"):
    return open_own(str(path), None, tmp_path / "cache", None, kind)


def shards(tmp_path):
    for shard in range(3):
        rows = list(range(10 * shard, 10 * shard + 10))
        columns = {"label": [f"c{row % 2}" for row in rows], "text": list(map(str, rows))}
        file = tmp_path / "shards" / f"train-0000{shard}-of-00003"
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), file.with_suffix(".parquet"))
    return tmp_path / "shards"


def csv_files(tmp_path):
    for shard in range(3):
        rows = list(range(10 * shard, 10 * shard + 10))
        text = list(map(str, rows))
        write_csv(tmp_path / "csv" / f"part-{shard}.csv", text=text, label=["a"] * 10)
    return tmp_path / "csv"


@pytest.mark.parametrize("make", [shards, csv_files])
@pytest.mark.parametrize("at_once", [2000, 4])
def test_some_rows_of_several_files_are_read_in_their_order(tmp_path, monkeypatch, make, at_once):
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", at_once)
    reader = opened(make(tmp_path), tmp_path)
    reader.use_as_text("text")
    assert reader.count("train") == 30
    assert values(reader, "train", "text") == [str(row) for row in range(30)]
    rows = np.array([0, 3, 9, 10, 25, 29])
    assert values(reader, "train", "text", rows) == [str(row) for row in rows]
    places = [
        part.place(row)
        for part in reader.read("train", ["text"], rows)
        for row in range(part.table.num_rows)
    ]
    assert [place.split(" (")[0] for place in places] == [
        "row 0", "row 3", "row 9", "row 0", "row 5", "row 9"
    ]  # fmt: skip
    assert "2" in places[-1].rpartition("/")[2]
    assert reader.content("train", rows) != reader.content("train", rows[:5])


def test_rows_of_a_large_file_are_held_in_memory_only_when_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 5)
    write_images(tmp_path / "train.parquet", [0, 1] * 20, ["a", "b"])
    parts = list(opened(tmp_path, tmp_path, "images").read("train", ["image"], np.array([7, 33])))
    assert [part.table.num_rows for part in parts] == [1, 1]
    assert [part.place(0)[:6] for part in parts] == ["row 7 ", "row 33"]
    assert parts[0].table.schema.metadata, "the schema's names come along"


def test_text_that_looks_like_numbers_or_dates_is_text(tmp_path):
    write_csv(tmp_path / "a.csv", text=["1", "02"], label=[0, 1])
    assert read_table(tmp_path / "a.csv", "CSV", "text")["text"].to_pylist() == ["1", "02"]
    rows = [{"text": "2024-01-01", "label": 1}, {"text": "2024-01-02", "label": 0}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    table = read_table(tmp_path / "a.jsonl", "JSON lines", "text")
    assert table["text"].to_pylist() == ["2024-01-01", "2024-01-02"]
    assert table["label"].to_pylist() == [1, 0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_told_by_the_first_line(tmp_path, delimiter):
    quoted = '"a, b; c\nd ""e"""'
    content = f"text{delimiter}label\n{quoted}{delimiter}x\n"
    (tmp_path / "a.csv").write_text(content, encoding="utf-8-sig")
    table = read_table(tmp_path / "a.csv", "CSV", "text")
    assert table.to_pylist() == [{"text": 'a, b; c\nd "e"', "label": "x"}]


def test_missing_words_of_other_tools_stay_text(tmp_path):
    write_csv(tmp_path / "a.csv", text=["NA", "null", ""], label=["a", "b", "a"])
    assert read_table(tmp_path / "a.csv", "CSV", "text")["text"].to_pylist() == ["NA", "null", ""]


def test_compressed_files_and_a_json_list_are_read(tmp_path):
    rows = [{"text": f"t{row}", "label": row} for row in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read_table(tmp_path / "a.json", "JSON lines", "text").to_pylist() == rows
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("text,label\nhello,1\n")
    assert read_table(tmp_path / "a.csv.gz", "CSV", "text")["text"].to_pylist() == ["hello"]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "hello"}\n')
    table = read_table(tmp_path / "a.jsonl.gz", "JSON lines", "text")
    assert table["text"].to_pylist() == ["hello"]


BROKEN = {
    "a.csv": (b"text,label\na,1\nb,2,3\n", "as CSV: .*Expected 2 columns, got 3"),
    "latin.csv": ("text,label\ncaf\xe9,1\n".encode("latin1"), "as CSV: .*UTF8.*save it as UTF-8"),
    "empty.csv": (b"", "as CSV: Empty CSV file"),
    "a.jsonl": (b'{"text": "a"}\n{"text": \n', "as JSON lines: .*in row 1"),
    "b.json": (b"[1, 2", "as JSON lines"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_file_is_refused_with_the_reason(tmp_path, name):
    content, words = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    file_format = "CSV" if name.endswith("csv") else "JSON lines"
    with pytest.raises(UserError, match=rf"{name} cannot be read {words}"):
        read_table(tmp_path / name, file_format, "text")


def test_damaged_parquet_file_is_to_be_replaced_and_not_downloaded(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"replace the file") as error:
        opened(tmp_path, tmp_path).count("train")
    assert "download_data" not in str(error.value)


def test_images_of_a_folder_are_sorted_by_class_and_name(tmp_path):
    write_folder(tmp_path / "pets", 2, ("dog", "cat"))
    (tmp_path / "pets" / ".hidden").mkdir()
    reader = opened(tmp_path / "pets", tmp_path, "images")
    assert values(reader, "train", "label") == ["cat", "cat", "dog", "dog"]
    (part,) = reader.read("train", ["image"], np.array([3]))
    assert part.place(0) == str(tmp_path / "pets" / "dog" / "001.png")
    before = reader.content("train", np.array([3])), reader.content("train", np.array([2]))
    (tmp_path / "pets" / "dog" / "001.png").write_bytes(b"other")
    after = reader.content("train", np.array([3])), reader.content("train", np.array([2]))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_class_without_images_is_refused(tmp_path):
    write_folder(tmp_path / "pets", 2)
    (tmp_path / "pets" / "owl").mkdir()
    with pytest.raises(UserError, match=r"no valid file for the classes owl.*Take other folders"):
        opened(tmp_path / "pets", tmp_path, "images").count("train")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def prepared(tmp_path, **files):
    from asap_exp.data.catalog import TextDataset
    from tests.data.test_hub import prepared as prepare

    dataset = TextDataset(name="news", num_classes=0, rows={}, hub=("somebody/news",))
    return prepare(tmp_path, dataset, **files)


def test_name_on_the_hub_is_read_from_the_copy_of_an_earlier_run(tmp_path, no_network):
    texts = pa.table(sentences(12))
    for split in ("train", "test"):
        pq.write_table(texts, tmp_path / f"{split}.parquet")
    prepared(tmp_path, train=tmp_path / "train.parquet", validation=tmp_path / "test.parquet")
    reader = opened("somebody/news", tmp_path)
    assert reader.splits == ("train", "validation")
    assert reader.source == "Hugging Face hub, somebody/news"
    assert reader.path == "somebody/news"
    assert values(reader, "train", "text", np.array([2, 5])) == [
        sentences(12)["text"][row] for row in (2, 5)
    ]
    (part,) = reader.read("validation", ["text"], np.array([4]))
    assert part.place(0) == "row 4 (counted from 0) of Hugging Face hub, somebody/news"


def test_name_on_the_hub_is_fetched_where_that_is_reachable(tmp_path, monkeypatch):
    asked, real = [], datasets.load_dataset
    for split in ("train", "test"):
        pq.write_table(pa.table(sentences(12)), tmp_path / f"{split}.parquet")

    def load(*name: str, split: str, cache_dir: str, **options: str):
        asked.append((name, split))
        return real("parquet", data_files=str(tmp_path / f"{split}.parquet"), split="train")

    monkeypatch.setattr(hub, "require_reachable", lambda url: None)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *name: ["train", "test"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    reader = open_own("somebody/news", None, tmp_path / "cache", "english", "texts")
    assert (reader.splits, reader.count("test")) == (("train", "test"), 12)
    assert asked == [(("somebody/news", "english"), split) for split in ("train", "test")]
    assert reader.source == "Hugging Face hub, somebody/news english"


def test_name_that_the_hub_does_not_answer_is_not_found(tmp_path, no_network):
    with pytest.raises(DataNotFound, match=r"neither a file nor a folder here.*was not reached"):
        opened("somebody/else", tmp_path)


def test_hub_data_without_a_training_split_is_refused(tmp_path, no_network):
    pq.write_table(pa.table(sentences(12)), tmp_path / "t.parquet")
    prepared(tmp_path, test=tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has the splits test, but none to train on"):
        opened("somebody/news", tmp_path)


def test_reading_loads_no_code(tmp_path, monkeypatch):
    """A folder with a loading script is read as files; the script is not run."""
    write_csv(tmp_path / "news" / "train.csv", **sentences(9))
    script = 'raise SystemExit("executed")'
    for name in ("news.py", "__init__.py", "dataset.py"):
        (tmp_path / "news" / name).write_text(script)
    assert opened(tmp_path / "news", tmp_path).count("train") == 9


def test_configuration_is_for_the_hub(tmp_path):
    write_csv(tmp_path / "a.csv", **sentences(9))
    with pytest.raises(UserError, match=r"data\.configuration=x is for a data set on the hub"):
        open_own(str(tmp_path / "a.csv"), None, tmp_path, "x", "texts")
