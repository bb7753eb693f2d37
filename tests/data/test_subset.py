"""`data.limit`: a subset of each split, drawn by the seed, stratified, and called a subset."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from asap_exp.core.runs import identity, public_config, run_name
from asap_exp.data import ImageDataModule, pixels
from asap_exp.data.catalog import IMAGE_DATASETS
from asap_exp.data.parquet import Part, taken
from asap_exp.data.raw_texts import load_texts
from asap_exp.data.sources import load_images
from asap_exp.data.subset import Limit
from asap_exp.data.text import TextDataModule
from tests.data.parquet import make_pixels, write_parquet
from tests.data.sentences import text_root
from tests.fake_runs import train_config

CIFAR10 = IMAGE_DATASETS["cifar10"]
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [500, 300, 200]))


@pytest.mark.parametrize("most", [10, 100, 333, 999])
def test_each_class_has_its_share(most):
    rows = Limit(most, seed=1).rows(LABELS)
    assert rows is not None
    assert len(rows) == len(set(rows)) == most
    assert (np.diff(rows) > 0).all(), "in their stored order"
    shares = np.bincount(LABELS[rows]) - most * np.array([0.5, 0.3, 0.2])
    assert (np.abs(shares) <= 1).all()


def test_the_seed_alone_chooses_the_rows():
    rows = [Limit(50, seed).rows(LABELS) for seed in (0, 0, 1)]
    assert (rows[0] == rows[1]).all()
    assert len(set(rows[0]) & set(rows[2])) < 25


@pytest.mark.parametrize("most", [None, 1000, 2000])
def test_limit_that_is_not_reached_chooses_nothing(most):
    assert Limit(most).rows(LABELS) is None


def test_lines_of_one_text_stay_together():
    rows = Limit(100, seed=3, one_text=True).rows(LABELS)
    assert rows is not None
    assert (np.diff(rows) == 1).all()
    assert 0 < rows[0] <= 900


def test_rows_are_taken_out_of_the_parts_that_have_them():
    parts = [Part("a", pa.table({"x": [0, 1]})), Part("b", pa.table({"x": [2, 3, 4]}))]
    rows = taken(parts, np.array([1, 2, 4]))
    assert [part.table["x"].to_pylist() for part in rows] == [[1], [2, 4]]
    assert rows[1].place(1) == "row 2 (counted from 0) of b"
    assert [part.name for part in taken(parts, np.array([3]))] == ["b"]


def test_no_more_images_are_decoded_than_the_limit(tmp_path, monkeypatch):
    decoded, real = [], pixels.decoded_pixels
    monkeypatch.setattr(
        pixels, "decoded_pixels", lambda *a: decoded.append(real(*a)) or decoded[-1]
    )
    for split in ("train", "test"):
        file = tmp_path / "cifar10" / f"{split}.parquet"
        write_parquet(file, CIFAR10, make_pixels(40), [i % 10 for i in range(40)])
    where = (str(tmp_path), str(tmp_path / "cache"))
    few = load_images(CIFAR10, "train", *where, Limit(20, seed=2))
    assert len(decoded[0]) == few.rows == 20
    assert few.labels.bincount().tolist() == [2] * 10
    everything = load_images(CIFAR10, "train", *where)
    rows = Limit(20, seed=2).rows(everything.labels.numpy())
    assert torch.equal(few.pixels, everything.pixels[rows])
    assert torch.equal(load_images(CIFAR10, "train", *where, Limit(20, seed=2)).pixels, few.pixels)
    assert len(decoded) == 2, "the third came from the cache, and not the whole in its place"


def test_limited_run_is_a_subset_of_its_data_set():
    data = ImageDataModule(train_config("data.limit=200").data, batch_size=32, seed=0)
    data.setup()
    data.test_dataloader()
    assert data.identity["train_split_rows"] == 200
    assert data.identity["train_split_rows_in_all"] == 1257
    assert data.identity["train_rows"] + data.identity["val_rows"] == 200
    assert (data.identity["test_rows"], data.identity["test_rows_in_all"]) == (200, 540)
    again = ImageDataModule(train_config("data.limit=200").data, batch_size=32, seed=5)
    assert again.content_hashes() == data.content_hashes(), "the same rows with every seed"


def test_limited_texts_are_drawn_from_every_class(tmp_path):
    config = train_config("data.limit=50", "data.vocab_size=400", task="agnews")
    config.data.root = config.data.cache = str(text_root(tmp_path, "agnews"))
    data = TextDataModule(config.data, folder=None, batch_size=8, seed=0)
    data.setup()
    assert np.bincount(data.raw("train").labels).tolist() == [13, 13, 12, 12]
    assert len(data.raw("test").texts) == 40
    assert data.identity["train_split_rows"] == 50


def test_limited_lines_of_wikitext_are_consecutive(tmp_path):
    config = train_config("data.limit=30", task="wikitext")
    config.data.root = config.data.cache = str(text_root(tmp_path, "wikitext2"))
    data = TextDataModule(config.data, folder=None, batch_size=8, seed=0)
    lines = load_texts(data.dataset, "train", config.data.root, None).texts
    some = data.raw("train").texts
    start = lines.index(some[5]) - 5
    assert some == lines[start : start + 30]


def test_limit_is_part_of_the_identity_only_where_it_is_set():
    plain, limited = train_config(), train_config("data.limit=100")
    assert "limit" not in identity(plain)["data"]
    assert "limit" not in public_config(plain)["data"]
    assert identity(limited)["data"]["limit"] == 100
    assert run_name(plain) != run_name(limited)
