"""A model that is itself the attention layer, whose path is empty."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import asap_exp
from asap_exp.attention import MultiHeadAttention, SinkhornAttention
from asap_exp.calibration.steps import AdamFit
from asap_exp.core.errors import UserError
from tests.small_model import DIM, Classifier, tokens


@pytest.fixture(scope="module")
def layer() -> MultiHeadAttention:
    layer = copy.deepcopy(Classifier().first).eval()
    layer.attend = SinkhornAttention(num_iters=8)
    return layer


BATCHES = [tokens(seed, rows=6) for seed in range(4)]


def test_the_summary_names_it(layer: nn.Module, capfd: pytest.CaptureFixture) -> None:
    few = {"steps": ("ridge", "kl"), "kl": AdamFit(2, 0.01), "slices": 1}
    asap_exp.compile(layer, BATCHES, **few)
    lines = capfd.readouterr().err.splitlines()
    assert any(line.startswith("the model itself  ") for line in lines)
    assert any(line.startswith("kl, the model itself: ") for line in lines)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loader": [torch.full_like(x, torch.nan) for x in BATCHES]}, "layer at the model itself"),
        ({"layers": ["first"]}, "no attention layer at first; the model has the model itself"),
        ({"forward": lambda model, x: x}, "did not run the attention layer at the model itself"),
    ],
)
def test_refusals_name_it(layer: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        asap_exp.compile(layer, **{"loader": BATCHES, "progress": False, **options})


@pytest.mark.parametrize("coarse", [False, True])
def test_it_is_saved_and_loaded(layer: nn.Module, coarse: bool, tmp_path: Path) -> None:
    if coarse:
        compiled = asap_exp.compile(layer, method="coarse", tokens=4, progress=False)
    else:
        compiled = asap_exp.compile(layer, BATCHES, progress=False)
        assert asap_exp.drift(compiled, BATCHES[-1]) == {"": pytest.approx(1, rel=1e-5)}
        from_state = asap_exp.load_compiled(layer, compiled.state_dict())
        assert torch.equal(from_state(BATCHES[0]), compiled(BATCHES[0]))
    asap_exp.save_compiled(compiled, tmp_path)
    loaded = asap_exp.load_compiled(layer, tmp_path)
    assert loaded(BATCHES[0]).shape == (6, 8, DIM)
    assert torch.equal(loaded(BATCHES[0]), compiled(BATCHES[0]))
