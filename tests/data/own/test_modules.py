"""Data modules of own data: their splits, subsets, classes and changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import DataNotFound, UserError
from asap_exp.core.files import write_json
from asap_exp.data import pixels
from asap_exp.data.run_files import CLASSES
from tests.data.own.made import (
    CLASSES as NAMES,
)
from tests.data.own.made import (
    loaded,
    looked_up,
    module_of,
    noise,
    sentences,
    write_csv,
    write_folder,
    write_images,
    write_json_lines,
)


def pixels_of(loader) -> set[bytes]:
    return {image.numpy().tobytes() for image in loader.images.pixels}


def test_one_folder_is_split_without_a_row_in_two_parts(tmp_path):
    data = loaded("images", write_folder(tmp_path / "pets", 40), cache=tmp_path / "cache")
    parts = [
        pixels_of(x()) for x in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    ]
    assert [len(part) for part in parts] == [86, 10, 24]
    assert len(set.union(*parts)) == 120
    assert data.test_dataloader().images.labels.bincount().tolist() == [8, 8, 8], "stratified"
    identity = data.identity
    assert identity["train_split_rows"] == identity["train_split_rows_in_all"] == 96
    assert identity["test_rows"] == identity["test_rows_in_all"] == 24
    assert identity["source"] == "own image folder"
    assert data.class_names == NAMES


@pytest.mark.slow
def test_other_split_seed_holds_out_other_rows(tmp_path):
    folder = write_folder(tmp_path / "pets", 40)
    tests = [
        pixels_of(
            loaded(
                "images", folder, f"data.split_seed={seed}", cache=tmp_path / "c"
            ).test_dataloader()
        )
        for seed in (0, 0, 1)
    ]
    assert tests[0] == tests[1] != tests[2]


@pytest.mark.slow
def test_splits_of_the_data_are_used_as_they_are(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        write_folder(tmp_path / split, 10 + number, seed=number)
    data = loaded("images", tmp_path, cache=tmp_path / "cache")
    assert [data.identity[key] for key in ("train_rows", "val_rows")] == [30, 33]
    assert data.test_dataloader().num_samples == 36


@pytest.mark.slow
def test_limit_is_of_each_split_and_decodes_no_more(tmp_path, monkeypatch):
    decoded, real = [], pixels.decoded_pixels
    monkeypatch.setattr(
        pixels, "decoded_pixels", lambda *a: decoded.append(real(*a)) or decoded[-1]
    )
    for number, split in enumerate(("train", "test")):
        write_folder(tmp_path / split, 40, seed=number)
    data = loaded("images", tmp_path, "data.limit=30", cache=tmp_path / "cache")
    data.test_dataloader()
    assert [len(part) for part in decoded] == [30, 30]
    identity = data.identity
    assert (identity["train_split_rows"], identity["train_split_rows_in_all"]) == (30, 120)
    assert (identity["test_rows"], identity["test_rows_in_all"]) == (30, 120)
    loaded("images", tmp_path, "data.limit=30", cache=tmp_path / "cache").test_dataloader()
    assert len(decoded) == 2, "from the cache"


@pytest.mark.slow
def test_images_are_resized_to_one_size(tmp_path):
    write_folder(tmp_path / "pets", 20, ("a", "b"), size=(16, 16))
    write_folder(tmp_path / "pets", 5, ("c",), size=(50, 30))
    data = loaded("images", tmp_path / "pets", cache=tmp_path / "cache")
    assert data.train_dataloader().images.pixels.shape[1:] == (3, 16, 16)
    grey = loaded("images", tmp_path / "pets", "data.channels=1", cache=tmp_path / "cache")
    images, _ = next(iter(grey.val_dataloader()))
    assert images.shape[1:] == (1, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "words", "numbers", "names"])
def test_trained_classes_are_found_by_name_in_data_of_another_order(tmp_path, kind):
    """Labels of a data set in which the classes have other numbers are the trained ones."""
    write_folder(tmp_path / "trained" / "train", 20)
    write_folder(tmp_path / "trained" / "test", 4)
    config = looked_up("images", tmp_path / "trained", cache=tmp_path / "cache")
    run = tmp_path / "run"
    write_json(run / CLASSES, list(NAMES))
    other, expected = tmp_path / "other", [2, 0, 0, 1, 2]
    if kind == "folder":
        write_folder(other / "train", 2)
        write_folder(other / "test", 2, ("cat", "bee"))
        expected = [1, 1, 2, 2]
    elif kind == "words":
        for split in ("train", "test"):
            write_images(other / f"{split}.parquet", ["cat", "ant", "ant", "bee", "cat"])
    elif kind == "names":
        for split in ("train", "test"):
            write_images(other / f"{split}.parquet", [0, 2, 2, 1, 0], ["cat", "bee", "ant"])
    else:
        for split in ("train", "test"):
            write_images(other / f"{split}.parquet", [2, 0, 0, 1, 2])
    data = module_of(moved(config, path=str(other)), folder=run)
    if kind == "numbers":  # which class is meant cannot be known
        with pytest.raises(UserError, match=r"class 2 in row 0 .* the 3 classes .*ant, bee, cat"):
            data.test_dataloader()
        return
    assert data.test_dataloader().images.labels.tolist() == expected


def moved(config: TrainConfig, **places: str) -> TrainConfig:
    """Return the configuration with the data in another place."""
    return replace(config, data=replace(config.data, **places))


def test_test_rows_held_out_of_changed_training_rows_are_refused(tmp_path):
    folder = write_folder(tmp_path / "pets", 20)
    config = looked_up("images", folder, cache=tmp_path / "cache")
    write_json(tmp_path / "run" / CLASSES, list(NAMES))
    same = module_of(config, folder=tmp_path / "run")
    assert same.test_dataloader().num_samples == 12
    write_folder(folder / "ant" / "..", 1, ("bee2",))
    (folder / "bee2" / "000.png").rename(folder / "bee" / "100.png")
    (folder / "bee2").rmdir()
    with pytest.raises(UserError, match=r"has changed since the model was trained.*data\.path=PL"):
        module_of(config, folder=tmp_path / "run").test_dataloader()


def test_data_that_is_gone_is_not_found(tmp_path, monkeypatch):
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)
    folder = write_folder(tmp_path / "pets", 20)
    config = looked_up("images", folder, cache=tmp_path / "cache")
    folder.rename(tmp_path / "gone")
    data = module_of(config, folder=None)
    with pytest.raises(DataNotFound, match=r"data\.path=.*pets: there is no such file or folder"):
        data.setup()
    module_of(moved(config, path=str(tmp_path / "gone"))).setup()
    (tmp_path / "new").mkdir()
    (tmp_path / "gone").rename(tmp_path / "new" / "pets")
    module_of(moved(config, root=str(tmp_path / "new"))).setup()


def json_lines(root: Path) -> Path:
    texts, labels = sentences(90).values()
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return write_json_lines(root / "news.jsonl", rows)


TEXTS = {"csv": lambda root: write_csv(root / "news.csv", **sentences(90)), "json": json_lines}


@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS)
def test_texts_of_a_file_are_split_and_keep_their_classes(tmp_path, make):
    data = loaded("texts", make(tmp_path), cache=tmp_path / "cache")
    splits = data.labelled_texts()
    assert splits is not None
    train, test = splits
    assert (len(train.texts), len(test.texts)) == (72, 18)
    assert not set(train.texts) & set(test.texts)
    assert sorted(train.texts + test.texts) == sorted(sentences(90)["text"])
    for raw in (train, test):
        assert all(
            f"a {NAMES[label]}," in text for text, label in zip(raw.texts, raw.labels, strict=True)
        )
    assert data.num_classes == 3
    _, labels = next(iter(data.train_dataloader()))
    assert set(labels.tolist()) <= {0, 1, 2}


@pytest.mark.slow
def test_empty_texts_are_refused_or_left_out(tmp_path):
    rows = sentences(60)
    rows["text"][4] = rows["text"][9] = "  "
    file = write_csv(tmp_path / "a.csv", **rows)
    with pytest.raises(
        UserError, match=r"2 empty texts among 60 .* first in row 4 .*data\.drop_empty"
    ):
        looked_up("texts", file, cache=tmp_path / "cache")
    data = loaded("texts", file, "data.drop_empty=true", cache=tmp_path / "cache")
    data.test_dataloader()
    assert data.identity["train_split_rows"] + data.identity["test_rows"] == 58
    every = write_csv(tmp_path / "b.csv", text=[""] * 20, label=["a", "b"] * 10)
    with pytest.raises(UserError, match=r"no text that is not empty.*data\.text_column=NAME"):
        looked_up("texts", every, "data.drop_empty=true")


def test_class_of_the_test_split_alone_is_refused_before_training(tmp_path):
    write_csv(tmp_path / "train.csv", **sentences(60))
    write_csv(tmp_path / "test.csv", text=["x", "y"], label=["ant", "cow"])
    with pytest.raises(UserError, match=r"class cow in row 1 .*test\.csv.*data\.label_column=NAME"):
        looked_up("texts", tmp_path)


def test_split_without_a_column_is_refused(tmp_path):
    write_csv(tmp_path / "train.csv", **sentences(60))
    write_csv(tmp_path / "test.csv", text=["x", "y"], kind=["ant", "cow"])
    with pytest.raises(UserError, match=r"\(test\) has no column label, which the training split"):
        looked_up("texts", tmp_path)


def test_split_without_rows_is_refused(tmp_path):
    write_csv(tmp_path / "train.csv", **sentences(60))
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"split test of .* has no rows; .*data\.path"):
        looked_up("texts", tmp_path)


def test_masked_language_model_of_own_texts(tmp_path):
    file = write_csv(tmp_path / "a.csv", **sentences(90))
    data = loaded("texts_mlm", file, "data.max_length=32", cache=tmp_path / "cache")
    batch, targets = next(iter(data.train_dataloader()))
    assert len(targets) == len(batch.positions) > 0
    assert data.class_names is None
    assert data.num_classes == data.config.vocab_size


@pytest.mark.slow
def test_blocks_of_a_subset_are_counted_among_those_of_all_texts(tmp_path):
    for split in ("train", "val", "test"):
        texts = [" ".join(sentences(30)["text"]) for _ in range(40)]
        write_csv(tmp_path / f"{split}.csv", text=texts)
    few, every = (
        loaded("texts_mlm", tmp_path, "data.max_length=32", *limit, cache=tmp_path / "cache")
        for limit in (["data.limit=20"], [])
    )
    blocks = [data.test_dataloader().num_samples for data in (few, every)]
    assert 40 < blocks[0] < blocks[1], "more than there are texts"
    assert (few.identity["test_rows"], few.identity["test_rows_in_all"]) == (blocks[0], blocks[1])
    assert every.identity["test_rows_in_all"] == blocks[1]


@pytest.mark.slow
def test_own_images_are_normalised_by_their_statistics(tmp_path):
    file = write_images(tmp_path / "train.parquet", ["a", "b"] * 60)
    data = loaded("images", file, cache=tmp_path / "cache")
    images = torch.cat([images for images, _ in data.val_dataloader()])
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) - 1) < 0.1
    assert np.stack(noise(120)).std() / 255 > 0.25, "which they are not by themselves"
