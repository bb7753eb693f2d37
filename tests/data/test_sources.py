"""Image sources: digits, Parquet files, the hub, torchvision, or one clear error."""

import threading
import time
import urllib.error
import urllib.request

import datasets
import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from asap_exp.core.errors import UserError
from asap_exp.data import reach, sources
from asap_exp.data.catalog import IMAGE_DATASETS, image_dataset
from asap_exp.data.reach import Unavailable, require_reachable
from asap_exp.data.sources import Images, load_images
from tests.data.parquet import make_pixels, write_parquet

CIFAR = [IMAGE_DATASETS["cifar10"], IMAGE_DATASETS["cifar100"]]
DIGITS = IMAGE_DATASETS["digits"]
LABELS = [3, 1, 4, 1, 5, 9, 2]


@pytest.fixture(autouse=True)
def no_network_and_no_folders(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.delenv("ASAP_EXP_DATA", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("ASAP_EXP_CACHE", str(tmp_path / "cache"))
    # Progress bars leave a thread behind.
    datasets.disable_progress_bars()


def make_folder(root, dataset, *, seed=0, image_format="PNG", labels=LABELS):
    """Write the train split of `dataset` in three shards and its test split in one file."""
    pixels = make_pixels(len(labels), seed)
    for number, rows in enumerate(np.array_split(np.arange(len(labels)), 3)):
        shard = root / dataset.name / f"train-{number:05d}-of-00003.parquet"
        write_parquet(shard, dataset, pixels[rows], [labels[i] for i in rows], image_format)
    test = root / dataset.name / "test.parquet"
    write_parquet(test, dataset, pixels[:2], labels[:2], image_format)
    return pixels


def channels_first(pixels):
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def test_digits_have_their_shapes():
    for split, rows in (("train", 1257), ("test", 540)):
        images = load_images(DIGITS, split, None, None)
        assert images.pixels.shape == (rows, 1, 8, 8)
        assert images.pixels.dtype == torch.uint8
        assert (images.pixels.min(), images.pixels.max()) == (0, 255)
        assert images.labels.shape == (rows,)
        assert images.labels.dtype == torch.int64


def test_digits_splits_are_a_partition_by_class():
    splits = [load_images(DIGITS, split, None, None) for split in ("train", "test")]
    bunch = load_digits()
    everything = np.column_stack([bunch.images.reshape(1797, 64) * (255 / 16), bunch.target])
    found = np.concatenate(
        [np.column_stack([s.pixels.flatten(1).numpy(), s.labels.numpy()]) for s in splits]
    )
    expected = np.round(everything).astype(int).tolist()
    # No two digits are equal, so pixels identify rows.
    assert len({tuple(row) for row in expected}) == 1797
    assert sorted(found.astype(int).tolist()) == sorted(expected)
    in_all = np.bincount(bunch.target)
    in_test = np.bincount(splits[1].labels.numpy())
    assert np.abs(in_test - in_all * 540 / 1797).max() < 1


def test_digits_split_never_changes():
    # Old and new records are comparable only while these hashes stay the same.
    assert load_images(DIGITS, "train", None, None).fingerprint().startswith("22cf2c29352c90f8")
    assert load_images(DIGITS, "test", None, None).fingerprint().startswith("16b14be4b5e828ed")


def test_digits_statistics_are_those_of_the_training_split():
    pixels = load_images(DIGITS, "train", None, None).pixels.float() / 255
    assert pixels.mean().item() == pytest.approx(DIGITS.mean[0], abs=1e-3)
    assert pixels.std().item() == pytest.approx(DIGITS.std[0], abs=1e-3)


def test_fingerprint_depends_on_pixels_labels_and_order_but_not_on_the_source():
    pixels = channels_first(make_pixels(3))
    labels = torch.tensor([0, 1, 2])
    expected = Images(pixels, labels, "here").fingerprint()
    assert Images(pixels.clone(), labels.clone(), "there").fingerprint() == expected
    others = [
        Images(pixels.flip(0), labels, "here"),
        Images(pixels, labels.flip(0), "here"),
        Images(pixels.transpose(2, 3), labels, "here"),
        Images(pixels[:2], labels[:2], "here"),
    ]
    assert len({expected, *map(Images.fingerprint, others)}) == len(others) + 1


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("dataset", CIFAR, ids=lambda d: d.name)
def test_parquet_shards_are_read_in_their_order(tmp_path, dataset, image_format):
    pixels = make_folder(tmp_path, dataset, image_format=image_format)
    train = load_images(dataset, "train", str(tmp_path), None)
    assert train.pixels.dtype == torch.uint8
    assert torch.equal(train.pixels, channels_first(pixels))
    assert train.labels.tolist() == LABELS
    test = load_images(dataset, "test", str(tmp_path), None)
    assert torch.equal(test.pixels, channels_first(pixels[:2]))
    assert test.labels.tolist() == LABELS[:2]
    assert train.source == test.source == "local Parquet files"


def test_data_root_comes_before_the_environment(tmp_path, monkeypatch):
    dataset = IMAGE_DATASETS["cifar10"]
    first = make_folder(tmp_path / "first", dataset, seed=1)
    second = make_folder(tmp_path / "second", dataset, seed=2)
    monkeypatch.setenv("ASAP_EXP_DATA", str(tmp_path / "second"))
    found = load_images(dataset, "test", None, None)
    assert torch.equal(found.pixels, channels_first(second[:2]))
    found = load_images(dataset, "test", str(tmp_path / "first"), None)
    assert torch.equal(found.pixels, channels_first(first[:2]))


def test_replaced_parquet_file_is_read_anew(tmp_path):
    dataset = IMAGE_DATASETS["cifar10"]
    make_folder(tmp_path, dataset, seed=1)
    load_images(dataset, "train", str(tmp_path), None)
    pixels = make_folder(tmp_path, dataset, seed=2)
    found = load_images(dataset, "train", str(tmp_path), None)
    assert torch.equal(found.pixels, channels_first(pixels))


def test_decoded_copies_lie_in_the_cache(tmp_path, monkeypatch):
    make_folder(tmp_path, CIFAR[0])
    load_images(CIFAR[0], "test", str(tmp_path), str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "datasets").is_dir()
    assert not (tmp_path / "cache").exists()
    load_images(CIFAR[0], "test", str(tmp_path), None)
    assert (tmp_path / "cache" / "datasets").is_dir()


def test_missing_shard_is_not_passed_over(tmp_path):
    make_folder(tmp_path, CIFAR[0])
    (tmp_path / CIFAR[0].name / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match="2 shards of train, but their names say 00003"):
        load_images(CIFAR[0], "train", str(tmp_path), None)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "other columns"])
def test_damaged_parquet_is_named_and_no_other_source_is_asked(tmp_path, monkeypatch, damage):
    dataset = IMAGE_DATASETS["cifar10"]
    make_folder(tmp_path, dataset)
    file = tmp_path / "cifar10" / "train-00001-of-00003.parquet"
    whole = file.read_bytes()
    if damage == "other columns":
        for file in (tmp_path / "cifar10").glob("train-*"):
            file.unlink()
        whole_split = tmp_path / "cifar10" / "train.parquet"
        datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(str(whole_split))
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"\x00" * 500)
    monkeypatch.setattr(sources, "from_hub", lambda *a: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match=r"Parquet files of cifar10 .*could not be read") as error:
        load_images(dataset, "train", str(tmp_path), None)
    assert str(tmp_path / "cifar10") in str(error.value)
    assert "scripts/download_data.py" in str(error.value)


def found_in(name, log):
    def load(*arguments):
        log.append(name)
        return Images(torch.zeros(1), torch.zeros(1), name)

    return load


def absent(name, log):
    def load(*arguments):
        log.append(name)
        raise Unavailable(f"{name} is not there")

    return load


@pytest.mark.parametrize("available", [0, 1, 2])
def test_sources_are_asked_in_order_until_one_has_the_data(monkeypatch, available):
    log: list = []
    names = ("from_parquet", "from_hub", "from_torchvision")
    for place, name in enumerate(names):
        make = found_in if place >= available else absent
        monkeypatch.setattr(sources, name, make(name, log))
    assert load_images(CIFAR[0], "train", None, None).source == names[available]
    assert tuple(log) == names[: available + 1]


@pytest.mark.parametrize("dataset", CIFAR, ids=lambda d: d.name)
@pytest.mark.parametrize("split", ["train", "test"])
def test_hub_is_asked_for_the_split(tmp_path, monkeypatch, dataset, split):
    pixels = make_folder(tmp_path, dataset)
    asked = []
    real = datasets.load_dataset

    def hub(path, *, split, cache_dir):
        asked.append((path, split))
        file = min((tmp_path / dataset.name).glob(f"{split}*"))
        return real("parquet", data_files=str(file), split="train", cache_dir=cache_dir)

    monkeypatch.setattr(sources, "require_reachable", asked.append)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    images = load_images(dataset, split, None, None)
    assert asked == ["https://huggingface.co", (f"uoft-cs/{dataset.name}", split)]
    assert torch.equal(images.pixels[:1], channels_first(pixels[:1]))
    assert images.source == f"Hugging Face hub, uoft-cs/{dataset.name}"


@pytest.mark.parametrize("dataset", CIFAR, ids=lambda d: d.name)
@pytest.mark.parametrize("split", ["train", "test"])
def test_torchvision_is_asked_where_the_hub_fails(monkeypatch, dataset, split):
    pixels = make_pixels(4)
    asked = []

    class Cifar:
        base_folder, url = "folder", "https://example.org/cifar"
        data, targets = pixels, [0, 1, 2, 3]

        def __init__(self, root, train, download):
            asked.append((train, download))

    def hub(*arguments, **options):
        raise ConnectionError("the hub is down")

    monkeypatch.setattr(sources, "require_reachable", lambda url: None)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(torchvision.datasets, dataset.torchvision, Cifar)
    images = load_images(dataset, split, None, None)
    assert asked == [(split == "train", True)]
    assert torch.equal(images.pixels, channels_first(pixels))
    assert images.labels.tolist() == [0, 1, 2, 3]
    assert images.source == f"torchvision {dataset.torchvision}"


def test_torchvision_s_copy_needs_no_network(tmp_path, monkeypatch):
    class Cifar:
        base_folder, url = "folder", "https://example.org/cifar"
        data, targets = make_pixels(2), [0, 1]

        def __init__(self, root, train, download):
            pass

    (tmp_path / "cache" / "torchvision" / "folder").mkdir(parents=True)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    assert len(load_images(IMAGE_DATASETS["cifar10"], "train", None, None).labels) == 2


@pytest.mark.parametrize("dataset", CIFAR, ids=lambda d: d.name)
def test_no_data_and_no_network_is_one_sentence_with_all_ways(tmp_path, dataset):
    with pytest.raises(UserError) as error:
        load_images(dataset, "train", str(tmp_path), None)
    message = str(error.value)
    # Why each source failed ...
    assert f"local folder: no train.parquet or train-*.parquet in {tmp_path / dataset.name}" in (
        message
    )
    assert "Hugging Face hub: huggingface.co was not reached (no network in tests)" in message
    assert "torchvision: www.cs.toronto.edu was not reached" in message
    # ... and what to do about it.
    ways = message.split("three ways")[1]
    assert f"{dataset.name}/train.parquet (or train-*.parquet)" in ways
    assert "data.root=FOLDER" in ways
    assert "ASAP_EXP_DATA=FOLDER" in ways
    assert "Hugging Face hub" in ways
    assert "torchvision" in ways


def test_no_folder_given_is_said():
    with pytest.raises(UserError, match=r"neither data\.root nor ASAP_EXP_DATA is set"):
        load_images(CIFAR[0], "train", None, None)


def test_network_that_never_answers_is_given_up(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **o: released.wait(20))
    monkeypatch.setattr(reach, "REACH_SECONDS", 0.1)
    started = time.monotonic()
    try:
        with pytest.raises(UserError, match="was not found"):
            load_images(CIFAR[0], "train", None, None)
        assert time.monotonic() - started < 5
    finally:
        released.set()


def test_server_that_answers_with_an_error_is_reachable(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 405, "no HEAD here", {}, None)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    require_reachable("https://example.org/data")
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: None)
    require_reachable("https://example.org/data")


def test_unreachable_server_is_named():
    with pytest.raises(Unavailable, match=r"^example\.org was not reached \(no network in tests"):
        require_reachable("https://example.org/data")


def test_unknown_data_set_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"data\.name=mnist.*cifar10, cifar100, digits"):
        image_dataset("mnist")
