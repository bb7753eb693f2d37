"""Corrupted test images: stronger is further away, the same every time, and said in the record."""

import pytest
import torch

from asap_exp.core.config import CorruptionConfig
from asap_exp.core.files import read_json
from asap_exp.data import ImageDataModule
from asap_exp.data.loader import DeviceLoader
from asap_exp.evaluate.corruption import CORRUPTIONS, corrupted
from asap_exp.report.captions import group_title
from asap_exp.report.groups import Group, grouped
from asap_exp.report.markdown import summary_lines
from asap_exp.report.notes import remarks
from tests.conftest import Pipeline
from tests.fake_runs import train_config
from tests.records import typed, with_data
from tests.stages import run_evaluate


@pytest.fixture(scope="module")
def test_images() -> DeviceLoader:
    loader = ImageDataModule(train_config().data, batch_size=32, seed=0).test_dataloader(64)
    assert isinstance(loader, DeviceLoader)
    return loader


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_is_further_from_the_image(test_images: DeviceLoader, name: str) -> None:
    distances = []
    for severity in range(1, 6):
        changed = corrupted(test_images, CorruptionConfig(name, severity))
        assert changed.images.pixels.dtype == torch.uint8
        assert torch.equal(changed.images.labels, test_images.images.labels)
        assert f"{name} of severity {severity}" in changed.images.source
        difference = changed.images.pixels.float() - test_images.images.pixels.float()
        distances.append(difference.square().mean().item())
    assert distances[0] > 0
    assert distances == sorted(distances)


def test_every_call_draws_the_same_noise(test_images: DeviceLoader) -> None:
    first, again = (corrupted(test_images, CorruptionConfig("noise", 3)) for _ in range(2))
    for (x, _), (y, _) in zip(first, again, strict=True):
        assert torch.equal(x, y)


def test_contrast_keeps_the_mean_and_shrinks_the_deviation(test_images: DeviceLoader) -> None:
    plain = test_images.images.pixels.float()
    low = corrupted(test_images, CorruptionConfig("contrast", 3)).images.pixels.float()
    torch.testing.assert_close(low.mean((1, 2, 3)), plain.mean((1, 2, 3)), rtol=0, atol=1.0)
    ratio = low.std((1, 2, 3)) / plain.std((1, 2, 3))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.4), rtol=0.02, atol=0)


def test_blur_leaves_a_flat_image_flat() -> None:
    flat = torch.full((1, 1, 8, 8), 0.25)
    blur, _ = CORRUPTIONS["blur"]
    torch.testing.assert_close(blur(flat, 1.0), flat)


def test_no_name_changes_nothing(test_images: DeviceLoader) -> None:
    assert corrupted(test_images, CorruptionConfig(None, 3)) is test_images


@pytest.mark.slow
def test_record_says_what_was_done_and_stays_out_of_the_summary(pipeline: Pipeline) -> None:
    plain = read_json(run_evaluate(pipeline.results))
    noisy = read_json(run_evaluate(pipeline.results, "corruption.name=noise"))
    assert plain["corruption"] is None
    assert noisy["corruption"] == {"name": "noise", "severity": 3}
    assert noisy["drift"] != plain["drift"]
    groups = {bool(g.first.corruption): g for g in grouped(map(typed, (plain, noisy)))}
    assert len(groups) == 2
    assert "noise of severity 3" in group_title(groups[True])
    for corrupted_or_not, found in ((False, plain), (True, noisy)):
        cifar = Group("x", [typed(with_data(found, "cifar100"))])
        published = any("Published" in remark for remark in remarks(cifar))
        assert published is not corrupted_or_not
    assert len(summary_lines(list(groups.values()))) == 3
