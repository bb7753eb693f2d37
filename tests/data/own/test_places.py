"""What a path holds, and which of its files belong to which split."""

from pathlib import Path

import pytest

from asap_exp.core.errors import DataNotFound, UserError
from asap_exp.data.own.places import FOLDER, HUB, format_of, locate, name_of, split_of
from tests.data.own.made import write_folder


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(path, kind="texts", root=None) -> dict[str, list[str]]:
    """Return the names of the files of each split."""
    place = locate(str(path), None if root is None else str(root), kind)
    return {split: [file.name for file in own] for split, own in place.splits.items()}


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("news_TRAIN.csv", "train"),
        ("training.csv", "train"),
        ("dev.jsonl", "validation"),
        ("my.valid.csv", "validation"),
        ("val_1.csv", "validation"),
        ("test.csv.gz", "test"),
        ("latest.csv", None),
        ("trainer.csv", None),
        ("train_test.csv", None),
    ],
)
def test_split_is_a_word_of_the_name(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.tsv", "a.csv.gz", "a.b.csv"])
def test_format_is_told_by_the_suffix(name):
    assert format_of(Path(name)) == "CSV"
    assert format_of(Path("a.txt")) is format_of(Path("csv")) is None


def test_files_of_a_folder_are_grouped_by_their_splits(tmp_path):
    names = ("train-0-of-2.parquet", "train-1-of-2.parquet", "validation.parquet", "test.parquet")
    files(tmp_path, *names, "README.md", ".hidden.csv")
    assert found(tmp_path) == {
        "train": list(names[:2]),
        "validation": ["validation.parquet"],
        "test": ["test.parquet"],
    }


def test_folder_of_a_repository_has_its_files_in_data(tmp_path):
    files(tmp_path, "data/train.parquet", "data/test.parquet", "README.md")
    assert set(found(tmp_path)) == {"train", "test"}


def test_folders_may_be_named_after_splits(tmp_path):
    files(tmp_path, "train/a.csv", "train/b.csv", "dev/test.csv")
    assert found(tmp_path) == {"train": ["a.csv", "b.csv"], "validation": ["test.csv"]}


def test_files_without_a_split_are_for_training(tmp_path):
    files(tmp_path, "a.csv", "b.csv")
    assert found(tmp_path) == {"train": ["a.csv", "b.csv"]}
    assert found(tmp_path / "a.csv") == {"train": ["a.csv"]}


def test_one_file_is_for_training_whatever_its_name(tmp_path):
    files(tmp_path, "test.csv")
    assert found(tmp_path / "test.csv") == {"train": ["test.csv"]}


def test_glob_chooses_files(tmp_path):
    files(tmp_path, "train.csv", "test.csv", "other.csv", "x/train.csv")
    assert set(found(f"{tmp_path}/t*.csv")) == {"train", "test"}
    assert locate(f"{tmp_path}/t*.csv", None, "texts").path == f"{tmp_path}/t*.csv"


def test_relative_path_starts_here_and_then_below_the_root(tmp_path, monkeypatch):
    files(tmp_path, "root/news/train.csv", "here/mine/train.csv")
    monkeypatch.chdir(tmp_path / "here")
    assert locate("mine", str(tmp_path / "root"), "texts").path == str(tmp_path / "here" / "mine")
    assert locate("news", str(tmp_path / "root"), "texts").path == str(tmp_path / "root" / "news")
    monkeypatch.setenv("ASAP_EXP_DATA", str(tmp_path / "root"))
    assert locate("news", None, "texts").path == str(tmp_path / "root" / "news")


def test_data_that_has_moved_is_found_below_the_root_by_its_name(tmp_path):
    files(tmp_path, "new/news/train.csv")
    assert found("/gone/news", root=tmp_path / "new") == {"train": ["train.csv"]}
    with pytest.raises(DataNotFound, match=r"data\.path=/gone/news: there is no such file"):
        locate("/gone/news", None, "texts")


def test_name_of_nothing_here_is_one_of_the_hub():
    for name in ("imdb", "stanfordnlp/imdb", "a/b.c-d_e"):
        assert locate(name, None, "texts").format == HUB
    with pytest.raises(DataNotFound, match=r"data\.path=PLACE"):
        locate("a/b/c", None, "texts")


def test_folders_of_images(tmp_path):
    write_folder(tmp_path / "one", 1)
    place = locate(str(tmp_path / "one"), None, "images")
    assert (place.format, set(place.splits)) == (FOLDER, {"train"})
    for split in ("train", "val", "test"):
        write_folder(tmp_path / "three" / split, 1)
    place = locate(str(tmp_path / "three"), None, "images")
    assert (place.format, set(place.splits)) == (FOLDER, {"train", "validation", "test"})


def test_folder_beside_those_of_splits_is_left_out_with_a_warning(tmp_path, capsys):
    for split in ("train", "test", "unlabelled"):
        write_folder(tmp_path / split, 1)
    place = locate(str(tmp_path), None, "images")
    assert set(place.splits) == {"train", "test"}
    assert "unlabelled in" in capsys.readouterr().err


def test_class_may_be_called_train(tmp_path):
    write_folder(tmp_path, 1, ("bus", "test", "train"))
    assert set(locate(str(tmp_path), None, "images").splits) == {"train"}


REFUSED = {
    "images without classes": (["1.png", "2.png"], "images", "has images, but no folder per class"),
    "nothing": ([], "images", "has no image and no Parquet file"),
    "no texts": (["a.txt"], "texts", "has no Parquet or CSV or JSON lines file"),
    "two kinds": (["a.csv", "b.parquet"], "texts", "has files of the kind CSV and Parquet"),
    "untold split": (["train.csv", "rest.csv"], "texts", "which split .*rest.csv belongs to"),
    "no training": (["val.csv", "test.csv"], "texts", "splits validation, test, but none to train"),
    "a split twice": (["train/a.csv", "val/a.csv", "dev/a.csv"], "texts", "are both the split val"),
}


@pytest.mark.parametrize(("names", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_folder_that_is_no_data_is_refused(tmp_path, names, kind, words):
    files(tmp_path, *names)
    with pytest.raises(UserError, match=words):
        locate(str(tmp_path), None, kind)


def test_file_of_another_kind_is_refused_with_those_that_are_read(tmp_path):
    files(tmp_path, "a.csv", "a.zip")
    with pytest.raises(UserError, match=r"of the kind CSV; give images as files of .* Parquet"):
        locate(str(tmp_path / "a.csv"), None, "images")
    with pytest.raises(UserError, match=r"of the kind \*\.zip; give texts as .*CSV or JSON lines"):
        locate(str(tmp_path / "a.zip"), None, "texts")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/flowers", "flowers"),
        ("/data/flowers/", "flowers"),
        ("/data/flowers/train.csv", "flowers"),
        ("/data/flowers/*.parquet", "flowers"),
        ("/data/news.csv.gz", "news"),
        ("/data/My Data (1)", "My_Data_1"),
        ("stanfordnlp/imdb", "imdb"),
        ("/", "data"),
    ],
)
def test_name_is_that_of_the_folder_or_file(path, name):
    assert name_of(path) == name
