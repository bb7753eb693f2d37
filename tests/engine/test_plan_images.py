"""Pictures of plans over a training: at which epochs, and what they show."""

import numpy as np
import pytest
import torch

from asap_exp.attention import attention_layers
from asap_exp.engine.plan_images import GAP, PlanImages, coloured, tiles
from asap_exp.models import build_net
from tests.stages import train_config


@pytest.mark.parametrize(
    ("count", "epochs", "every", "expected"),
    [
        (3, 10, 1, {0, 4, 9}),
        (20, 3, 1, {0, 1, 2}),
        (2, 10, 3, {2, 8}),
        (5, 2, 3, set()),
    ],
)
def test_pictures_are_spread_over_the_validations(
    count: int, epochs: int, every: int, expected: set[int]
) -> None:
    assert PlanImages(count, epochs, every).epochs == expected


def test_picture_has_a_row_per_layer_and_a_column_per_head(tmp_path) -> None:
    net = build_net(train_config(tmp_path))
    layers = len(attention_layers(net))
    found = tiles(net, torch.rand(2, 1, 8, 8))
    gaps = found == GAP
    tokens = 4
    assert found.shape == (layers * (tokens + 1), 2 * (tokens + 1))
    assert gaps.sum() == found.numel() - layers * 2 * tokens**2
    torch.testing.assert_close(found[:tokens, :tokens].sum(dim=1), torch.ones(tokens))


def test_colours_are_brighter_for_more_mass_and_white_in_gaps() -> None:
    picture = coloured(torch.tensor([[0.0, 0.25], [1.0, GAP]]))
    assert picture.shape == (256, 256, 3)
    brightness = picture[::128, ::128].astype(int).sum(axis=2)
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 0]
    assert np.array_equal(picture[-1, -1], [255, 255, 255])


def test_large_plan_is_averaged_over_blocks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("asap_exp.engine.plan_images.MOST_TOKENS", 2)
    found = tiles(build_net(train_config(tmp_path)), torch.rand(1, 1, 8, 8))
    assert found.shape == (2 * 3, 2 * 3)
