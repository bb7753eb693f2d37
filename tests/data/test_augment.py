"""Batch augmentation treats each image separately, and labels follow the pixels."""

import itertools

import pytest
import torch

from asap_exp.core.config import AugmentConfig, RandAugmentConfig
from asap_exp.data.augment import (
    BatchRandomCrop,
    BatchRandomHorizontalFlip,
    EvaluationTransform,
    GroupedRandAugment,
    TrainingTransform,
)
from asap_exp.data.catalog import IMAGE_DATASETS

PADDING = 2
DIGITS, CIFAR100 = IMAGE_DATASETS["digits"], IMAGE_DATASETS["cifar100"]


def noise(batch, channels=3, height=5, width=7, seed=0):
    """Return images without zeros, so that a black border must come from padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def augmentation(**options) -> AugmentConfig:
    off = {"crop_padding": 0, "flip": False, "mixup": 0.0, "cutmix": 0.0}
    groups = {"num_ops": 0, "magnitude": 9, "groups": 8} | options.pop("randaugment", {})
    return AugmentConfig(**(off | options), randaugment=RandAugmentConfig(**groups))


def plain_crops(image, padding):
    """Return every crop of one padded image by its offset, computed with loops."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    offsets = itertools.product(range(2 * padding + 1), repeat=2)
    return {(r, c): padded[:, r : r + height, c : c + width] for r, c in offsets}


def offsets_of(cropped, pixels):
    found = []
    for result, image in zip(cropped, pixels, strict=True):
        equal = [o for o, crop in plain_crops(image, PADDING).items() if torch.equal(crop, result)]
        assert len(equal) == 1, "not a crop of this image"
        found.append(equal[0])
    return found


def test_crop_is_a_plain_crop_of_each_image_at_an_offset_of_its_own():
    torch.manual_seed(0)
    pixels = noise(200)
    cropped = BatchRandomCrop(PADDING)(pixels)
    assert cropped.dtype == torch.uint8
    offsets = offsets_of(cropped, pixels)
    every = set(itertools.product(range(2 * PADDING + 1), repeat=2))
    assert set(offsets) == every, "rows and columns are drawn independently, over the whole range"


def test_crop_without_padding_is_the_image():
    pixels = noise(3)
    assert torch.equal(BatchRandomCrop(0)(pixels), pixels)


def test_flip_is_of_each_image():
    torch.manual_seed(0)
    pixels = noise(400)
    flipped = BatchRandomHorizontalFlip()(pixels)
    mirrored = [torch.equal(x, y.flip(-1)) for x, y in zip(flipped, pixels, strict=True)]
    same = [torch.equal(x, y) for x, y in zip(flipped, pixels, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 160 < sum(mirrored) < 240


class Recorder(torch.nn.Module):
    """Stand-in for RandAugment that adds the number of the call and records batch sizes."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, part):
        self.sizes.append(len(part))
        return part * 0 + len(self.sizes)


@pytest.mark.parametrize(
    ("batch", "groups", "sizes"),
    [(8, 4, [2] * 4), (8, 1, [8]), (3, 8, [1] * 3), (1, 8, [1]), (7, 3, [3, 3, 1])],
)
def test_randaugment_draws_anew_for_each_group(batch, groups, sizes):
    module = GroupedRandAugment(RandAugmentConfig(num_ops=2, magnitude=9, groups=groups))
    module.augment = Recorder()
    result = module(noise(batch))
    assert module.augment.sizes == sizes
    expected = [number for number, size in enumerate(sizes, 1) for _ in range(size)]
    assert result[:, 0, 0, 0].tolist() == expected


def test_randaugment_gives_groups_different_operations():
    torch.manual_seed(0)
    image = noise(1, height=32, width=32)
    module = GroupedRandAugment(RandAugmentConfig(num_ops=2, magnitude=20, groups=8))
    result = module(image.expand(16, -1, -1, -1))
    assert result.shape == (16, 3, 32, 32)
    assert result.dtype == torch.uint8
    of_groups = result.unflatten(0, (8, 2))
    assert torch.equal(of_groups[:, 0], of_groups[:, 1])
    assert len({tuple(x.flatten().tolist()) for x in of_groups[:, 0]}) > 4


@pytest.mark.parametrize("dataset", [DIGITS, CIFAR100], ids=lambda d: d.name)
def test_evaluation_normalises_each_channel_and_nothing_else(dataset):
    pixels, labels = noise(4, dataset.channels), torch.tensor([0, 1, 2, 3])
    images, same = EvaluationTransform(dataset)(pixels, labels)
    assert same is labels
    assert images.dtype == torch.float32
    for c in range(dataset.channels):
        expected = (pixels[:, c].double() / 255 - dataset.mean[c]) / dataset.std[c]
        torch.testing.assert_close(images[:, c].double(), expected, rtol=1e-5, atol=1e-5)


def test_training_without_augmentation_is_evaluation():
    pixels, labels = noise(4), torch.tensor([0, 1, 2, 3])
    images, same = TrainingTransform(CIFAR100, augmentation())(pixels, labels)
    assert torch.equal(images, EvaluationTransform(CIFAR100)(pixels, labels)[0])
    assert torch.equal(same, labels)


def test_border_of_a_crop_is_black_before_normalisation():
    torch.manual_seed(0)
    transform = TrainingTransform(CIFAR100, augmentation(crop_padding=2))
    images, _ = transform(torch.full((50, 3, 5, 7), 255, dtype=torch.uint8), torch.arange(50))
    black, white = (
        EvaluationTransform(CIFAR100)(
            torch.full((1, 3, 1, 1), value, dtype=torch.uint8), torch.zeros(1)
        )[0].expand_as(images)
        for value in (0, 255)
    )
    assert ((images == black) | (images == white)).all()
    assert (images == black).any()


MIXING = {
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.8, "cutmix": 1.0},
}


@pytest.mark.parametrize("options", MIXING.values(), ids=MIXING)
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_mixed_labels_are_the_shares_of_the_mixed_images(options, batch):
    torch.manual_seed(0)
    labels = torch.arange(batch)
    # Image i has the value 20 i everywhere, so the mean of a mixed image identifies its parts.
    pixels = (20 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    transform = TrainingTransform(DIGITS, augmentation(**options))
    mixed = 0
    for _ in range(10):
        images, shares = transform(pixels, labels)
        assert images.dtype == torch.float32
        assert shares.shape == (batch, 10)
        assert shares.min() >= 0
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(batch))
        values = (images * DIGITS.std[0] + DIGITS.mean[0]).mean(dim=(1, 2, 3)) * 255
        expected = shares @ (20.0 * torch.arange(10))
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-2)
        mixed += ((shares > 0.01).sum(dim=1) == 2).sum().item()
    assert mixed > batch


def test_mixup_and_cutmix_take_turns():
    torch.manual_seed(0)
    pixels = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    both = TrainingTransform(DIGITS, augmentation(mixup=5.0, cutmix=1.0))
    # Mixup gives images of one value, cutmix images of two.
    values = [len(both(pixels, torch.arange(2))[0][0].unique()) for _ in range(30)]
    assert {1, 2} == set(values)


EVERYTHING = {"crop_padding": 2, "flip": True, "mixup": 0.8, "cutmix": 1.0}


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("dataset", [DIGITS, CIFAR100], ids=lambda d: d.name)
def test_everything_runs_on_a_batch_smaller_than_the_groups(dataset, batch):
    config = augmentation(**EVERYTHING, randaugment={"num_ops": 2, "groups": 8})
    transform = TrainingTransform(dataset, config)
    pixels = noise(batch, dataset.channels, dataset.size, dataset.size)
    before = pixels.clone()
    for seed in range(10):
        torch.manual_seed(seed)
        images, labels = transform(pixels, torch.arange(batch) % dataset.num_classes)
        assert images.shape == pixels.shape
        assert images.dtype == torch.float32
        assert images.isfinite().all()
        assert labels.shape == (batch, dataset.num_classes)
    assert torch.equal(pixels, before), "the stored images stay as they are"


def test_augmentation_is_a_function_of_the_global_seed():
    config = augmentation(**EVERYTHING, randaugment={"num_ops": 2, "groups": 2})
    transform = TrainingTransform(CIFAR100, config)
    pixels, labels = noise(6, 3, 32, 32), torch.arange(6)

    def augmented(seed):
        torch.manual_seed(seed)
        return transform(pixels, labels)

    for first, again, other in zip(augmented(1), augmented(1), augmented(2), strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
