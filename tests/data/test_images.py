"""The data module: training, validation, calibration and test samples, and their separation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torchvision.transforms import v2

from asap_exp.core.errors import UserError
from asap_exp.data import ImageDataModule, memory_check
from asap_exp.data import images as images_module
from asap_exp.data.catalog import IMAGE_DATASETS
from asap_exp.data.module import carved
from asap_exp.data.run_files import CLASSES
from asap_exp.data.sources import DIGITS_TEST_ROWS, Images
from tests.data.parquet import make_pixels, write_parquet
from tests.fake_runs import train_config

LARGE = make_pixels(40).repeat(2, axis=1).repeat(2, axis=2)
PLAIN_CIFAR = replace(IMAGE_DATASETS["cifar10"], num_classes=11)  # so that a label may be 10

# Classes of unequal size, unordered.
LABELS = torch.from_numpy(
    np.random.default_rng(0).permutation(np.repeat(np.arange(10), range(20, 40, 2)))
)
ROWS = len(LABELS)


def numbered(split: str) -> Images:
    """Return images whose first two pixels hold their number, which identifies each row."""
    pixels = torch.zeros(ROWS, 1, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(ROWS) % 256
    pixels[:, 0, 0, 1] = torch.arange(ROWS) // 256
    pixels[:, 0, 0, 2] = int(split == "test")
    return Images(pixels, LABELS, f"numbered {split}")


def numbers(images: Images) -> list[int]:
    first, second = images.pixels[:, 0, 0, 0].long(), images.pixels[:, 0, 0, 1].long()
    return (first + 256 * second).tolist()


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Replace the digits by numbered images; return the list of loaded splits."""
    log = []

    def load(dataset, split, root, cache, limit, size):
        log.append(split)
        return numbered(split)

    monkeypatch.setattr(images_module, "load_images", load)
    return log


def module(*overrides: str, seed: int = 0) -> ImageDataModule:
    config = train_config("recipe.keep=last", *overrides)
    data = ImageDataModule(config.data, batch_size=32, seed=seed)
    data.setup()
    return data


def train_and_val(data: ImageDataModule) -> tuple[list[int], list[int]]:
    return numbers(data.train_dataloader().images), numbers(data.val_dataloader().images)


def test_validation_rows_are_carved_out_of_the_training_split(loaded):
    train, val = train_and_val(module())
    assert len(val) == round(0.1 * ROWS)
    assert sorted(train + val) == list(range(ROWS))
    assert (train, val) == (sorted(train), sorted(val)), "in their stored order"


def test_validation_rows_are_a_tenth_of_every_class(loaded):
    _, val = train_and_val(module())
    in_val = torch.bincount(LABELS[val], minlength=10)
    assert ((in_val - 0.1 * torch.bincount(LABELS)).abs() < 1).all()


def test_labels_stay_with_their_images(loaded):
    data = module()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert torch.equal(loader.images.labels, LABELS[numbers(loader.images)])


@pytest.mark.slow
def test_validation_rows_depend_on_the_split_seed_alone(loaded):
    expected = train_and_val(module())
    assert train_and_val(module("recipe.batch_size=7", seed=5)) == expected
    assert train_and_val(module("data.augment.mixup=0")) == expected
    assert train_and_val(module("data.split_seed=1")) != expected


def test_other_share_of_validation_rows(loaded):
    assert len(train_and_val(module("data.val_fraction=0.5"))[1]) == ROWS // 2


def test_training_on_everything_uses_every_row(loaded):
    train, val = train_and_val(module("data.train_on=train+val"))
    assert train == list(range(ROWS))
    assert val == train_and_val(module())[1]


def test_fewer_validation_images_than_classes_are_refused(loaded):
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.01.*10 classes.*larger fraction"):
        module("data.val_fraction=0.01")


def test_test_split_is_not_loaded_before_it_is_asked_for(loaded):
    data = module()
    data.setup("fit")
    list(data.train_dataloader())
    list(data.val_dataloader())
    data.calibration_dataloaders(samples=8, holdout=8, batch_size=4, seed=0)
    assert loaded == ["train"], "once, whatever was asked of it"
    assert not [key for key in data.identity if "test" in key]
    data.test_dataloader()
    assert loaded == ["train", "test"]


# Size of the whole split in the catalogue: the fixture's rows are recorded as a subset.
OF = IMAGE_DATASETS["digits"].rows["test"]


def test_test_images_are_all_or_the_first(loaded):
    data = module()
    whole = data.test_dataloader()
    assert numbers(whole.images) == list(range(ROWS))
    assert (whole.images.pixels[:, 0, 0, 2] == 1).all()
    assert (data.identity["test_rows"], data.identity["test_rows_in_all"]) == (ROWS, OF)
    subset = data.test_dataloader(max_rows=20)
    assert numbers(subset.images) == list(range(20))
    assert (data.identity["test_rows"], data.identity["test_rows_in_all"]) == (20, OF)
    # Asking for more rows than exist gives the whole split.
    assert len(data.test_dataloader(max_rows=ROWS + 1).images.labels) == ROWS
    assert data.identity["test_rows"] == ROWS


def calibration(data: ImageDataModule, **options) -> tuple[list[int], list[int]]:
    given = {"samples": 50, "holdout": 30, "batch_size": 16, "seed": 0} | options
    fit, held_out = data.calibration_dataloaders(**given)
    return numbers(fit.images), numbers(held_out.images)


@pytest.mark.parametrize("train_on", ["train", "train+val"])
def test_calibration_images_are_training_images_and_the_held_out_ones_are_others(loaded, train_on):
    data = module(f"data.train_on={train_on}")
    fit, held_out = calibration(data)
    assert (len(set(fit)), len(set(held_out))) == (50, 30)
    assert not set(fit) & set(held_out)
    train, _ = train_and_val(module())
    assert set(fit) | set(held_out) <= set(train)
    assert loaded == ["train", "train"]


def test_calibration_images_depend_on_their_seed(loaded):
    data = module()
    assert calibration(data) == calibration(data) == calibration(module(seed=4))
    assert calibration(data) != calibration(data, seed=1)


def test_more_calibration_images_keep_the_held_out_ones(loaded):
    data = module()
    fit, held_out = calibration(data)
    more, same = calibration(data, samples=100)
    assert same == held_out
    assert set(fit) < set(more)


def test_calibration_takes_what_there_is(loaded):
    data = module()
    train, _ = train_and_val(data)
    fit, held_out = calibration(data, samples=10**6)
    assert sorted(fit + held_out) == train
    assert len(calibration(data, holdout=len(train) - 1)[0]) == 1
    with pytest.raises(UserError, match=rf"calibration\.holdout={len(train)} leaves nothing"):
        calibration(data, holdout=len(train))


def test_calibration_images_are_neither_shuffled_nor_augmented(loaded):
    data = module()
    for loader in data.calibration_dataloaders(samples=50, holdout=30, batch_size=16, seed=0):
        assert not loader.shuffled
        assert loader.batch_size == 16
        images, labels = next(iter(loader))
        expected = loader.images.pixels[:16].float() / 255
        dataset = data.dataset
        torch.testing.assert_close(images * dataset.std[0] + dataset.mean[0], expected)
        assert torch.equal(labels, loader.images.labels[:16])


def test_training_is_shuffled_and_augmented_and_validation_is_neither(loaded):
    data = module()
    train, val = data.train_dataloader(), data.val_dataloader()
    assert train.shuffled
    assert not val.shuffled
    torch.manual_seed(0)
    assert next(iter(train))[1].shape == (32, 10), "mixup makes labels class probabilities"
    assert next(iter(val))[1].shape == (ROWS // 10,)


@pytest.mark.parametrize("size", [4, 8, 12])
def test_images_have_the_size_that_is_asked_for(loaded, size):
    data = module(f"data.image_size={size}")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert loader.images.pixels.shape[1:] == (1, size, size)
        assert loader.images.pixels.dtype == torch.uint8
        assert next(iter(loader))[0].shape[1:] == (1, size, size)


def test_resizing_keeps_a_constant_image(monkeypatch):
    constant = Images(torch.full((ROWS, 1, 8, 8), 77, dtype=torch.uint8), LABELS, "constant")
    monkeypatch.setattr(images_module, "load_images", lambda *a: constant)
    pixels = module("data.image_size=5", "model.patch_size=5").val_dataloader().images.pixels
    assert pixels.unique().tolist() == [77]


def test_folders_reach_the_source(monkeypatch):
    asked = []

    def load(dataset, split, root, cache, limit, size):
        asked.append((dataset.name, split, root, cache))
        return numbered(split)

    monkeypatch.setattr(images_module, "load_images", load)
    module("data.root=somewhere", "data.cache=elsewhere").test_dataloader()
    assert asked == [("digits", split, "somewhere", "elsewhere") for split in ("train", "test")]


def test_unknown_data_set_is_refused():
    with pytest.raises(UserError, match=r"data\.name=mnist"):
        module("data.name=mnist")


def test_identity_says_which_images_they_were(loaded):
    data = module()
    assert data.identity["name"] == "digits"
    assert data.identity["train_on"] == "train"
    assert data.identity["source"] == "numbered train"
    assert (data.identity["train_rows"], data.identity["val_rows"]) == (ROWS - 29, 29)
    assert data.identity["train_sha256"] == numbered("train").fingerprint()
    data.test_dataloader(max_rows=5)
    assert data.identity["test_sha256"] == numbered("test").fingerprint(), "of the whole split"
    assert data.identity["source"] == "numbered train"

    everything = module("data.train_on=train+val").identity
    assert everything["train_rows"] == ROWS
    assert everything["train_sha256"] == data.identity["train_sha256"]
    assert everything["val_rows_sha256"] == data.identity["val_rows_sha256"]
    other = module("data.split_seed=1").identity
    assert other["val_rows_sha256"] != data.identity["val_rows_sha256"]


def test_digits_without_any_folder():
    data = module()
    assert data.identity["source"] == "embedded in scikit-learn"
    assert data.identity["train_rows"] + data.identity["val_rows"] == 1797 - DIGITS_TEST_ROWS
    assert len(data.test_dataloader().images.labels) == DIGITS_TEST_ROWS


@pytest.mark.parametrize(("fraction", "rows"), [(0.9999, 1257), (0.99, 999)])
def test_fraction_that_leaves_too_few_training_rows_is_refused(fraction, rows):
    words = "leaves fewer training images than the 10 classes; choose a smaller fraction"
    with pytest.raises(UserError, match=f"data.val_fraction={fraction} of {rows} rows {words}"):
        carved(np.arange(rows) % 10, fraction, seed=0, sample_name="images")
    train, _ = carved(np.arange(1000) % 10, 0.99, seed=0, sample_name="images")
    assert len(train) == 10, "as many as there are classes"


def test_batches_are_as_large_as_asked_for(loaded):
    data = module("data.val_fraction=0.9")
    data.batch_size = 29
    assert data.train_dataloader().num_samples == 29
    assert len(next(iter(data.train_dataloader()))[1]) == 29
    data.batch_size = 30
    with pytest.raises(
        UserError, match=r"data\.val_fraction=0\.9 leaves 29 images .*batch_size=30"
    ):
        data.train_dataloader()
    # A data set smaller than a batch is a different error: no fraction helps.
    data.batch_size = ROWS + 1
    assert len(next(iter(data.train_dataloader()))[1]) == 29


def test_batch_larger_than_the_data_is_told_with_both_numbers(loaded, capsys):
    data = module("data.val_fraction=0.9")
    data.batch_size = 29
    data.warn_of_few_samples()
    assert capsys.readouterr().err == ""
    data.batch_size = ROWS + 1
    data.warn_of_few_samples()
    told = capsys.readouterr().err
    assert told.startswith(f"warning: recipe.batch_size={ROWS + 1} is more than the 29 training ")
    assert told.endswith("such as recipe.batch_size=3\n")


def test_class_with_one_row_stays_in_training():
    labels = np.array([0] * 20 + [1] * 19 + [2])
    train, val = carved(labels, 0.1, seed=0, sample_name="images")
    assert sorted([*train, *val]) == list(range(40))
    assert 39 in train
    assert sorted(labels[val]) == [0, 0, 1, 1]
    with pytest.raises(UserError, match="none of the 3 classes has more than one of the 3 rows"):
        carved(np.arange(3), 0.5, seed=0, sample_name="images")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_no_fraction_is_advised_where_none_helps(fraction):
    with pytest.raises(UserError, match=r"has more than one of the 4 rows\. Add rows") as error:
        carved(np.arange(4), fraction, seed=0, sample_name="images")
    assert "larger" not in str(error.value)
    # A class of one row is not held back and therefore not counted.
    labels = np.array([0] * 4 + [1] * 4 + [2])
    with pytest.raises(UserError, match=r"than the 2 classes of more .* a larger fraction"):
        carved(labels, 0.1, seed=0, sample_name="images")


def test_a_limit_that_leaves_too_few_rows_is_named():
    match = r"none of the 5 classes has more than one of the 5 rows of data\.limit=5\. Raise data"
    with pytest.raises(UserError, match=match):
        carved(np.arange(5), 0.1, seed=0, sample_name="images", limit=5)
    labels = np.repeat(np.arange(5), 2)
    match = r"of 10 rows of data\.limit=10 leaves fewer validation .* a larger fraction or limit"
    with pytest.raises(UserError, match=match):
        carved(labels, 0.1, seed=0, sample_name="images", limit=10)
    config = train_config(task="digits").data
    data = ImageDataModule(replace(config, limit=5), batch_size=2, seed=0)
    with pytest.raises(UserError, match=r"data\.limit=5\. Raise data\.limit, or leave it out"):
        data.setup()


def test_ordinary_split_is_that_of_scikit_learn():
    labels = LABELS.numpy()
    parts = train_test_split(np.arange(ROWS), test_size=0.1, stratify=labels, random_state=3)
    for part, expected in zip(
        carved(labels, 0.1, seed=3, sample_name="images"), parts, strict=True
    ):
        assert part.tolist() == sorted(expected)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Return a module on CIFAR-10 from a local folder of 64 x 64 images."""
    monkeypatch.setenv("ASAP_EXP_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        file = tmp_path / "cifar10" / f"{split}.parquet"
        write_parquet(file, IMAGE_DATASETS["cifar10"], LARGE, [i % 2 for i in range(40)])

    def make(*overrides: str, **options) -> ImageDataModule:
        given = ("data.name=cifar10", f"data.root={tmp_path}", *overrides)
        config = train_config(*given, task="cifar")
        return ImageDataModule(config.data, batch_size=8, seed=0, **options)

    return make


@pytest.mark.parametrize("size", [32, 64, 16])
def test_images_of_another_size_are_resized(cifar, size):
    data = cifar(f"data.image_size={size}")
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert loader.images.pixels.shape[1:] == (3, size, size)
    large = torch.from_numpy(LARGE).permute(0, 3, 1, 2)
    expected = v2.functional.resize(large, [size, size], antialias=True)
    assert torch.equal(data.test_dataloader().images.pixels, expected)


def test_size_beyond_the_memory_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(memory_check, "available_memory", lambda: 3 * 4096)
    module("data.image_size=6")
    with pytest.raises(UserError, match=r"data\.image_size=7 makes 290 samples of .*MiB"):
        module("data.image_size=7", "model.patch_size=7")


def test_test_labels_of_images_are_refused_before_training(cifar, tmp_path):
    labels = [0, 10, *([1] * 38)]
    write_parquet(tmp_path / "cifar10" / "test.parquet", PLAIN_CIFAR, make_pixels(40), labels)
    with pytest.raises(UserError, match=r"has 10 in row 1 .*test\.parquet; .* 0 to 9"):
        cifar().setup()
    (tmp_path / "cifar10" / "test.parquet").unlink()
    data = cifar()
    data.setup()
    assert data.identity["train_split_rows"] == 40


def test_order_of_the_classes_of_images_is_kept_in_the_run(cifar, tmp_path):
    data = cifar()
    data.setup()
    run = tmp_path / "run"
    data.save(run)
    names = json.loads((run / CLASSES).read_text())
    assert names == [str(i) for i in range(10)]
    assert cifar(folder=run).dataset.trained_names == tuple(names)
    digits = module()
    digits.save(tmp_path / "digits")
    assert not (tmp_path / "digits").exists(), "nothing is known"
