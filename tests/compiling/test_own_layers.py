"""Layers of users: what they lack, or say wrongly, is told."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asap_exp
from asap_exp.attention import AttentionLayer, MultiHeadAttention, SinkhornAttention
from asap_exp.core.errors import UserError
from tests.small_model import DIM, HEADS, Classifier, tokens

HEAD_DIM = DIM // HEADS


class Own(AttentionLayer):
    """With what `attributes` say, and two heads in truth."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).transpose(1, 3).unbind(2)
        return self.attended(q, k, v)


WHOLE = {"num_heads": HEADS, "head_dim": HEAD_DIM, "attend": SinkhornAttention(num_iters=3)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": None}, r"the layer at 0 \(Own\) has num_heads=None; it must be a whole nu"),
        ({"num_heads": 2.0}, "has num_heads=2.0; it must be a whole number, at least 1"),
        ({"head_dim": 0}, "has head_dim=0; it must be"),
        *(
            ((name,), rf"0 \(Own\) has no {name}; a subclass of AttentionLayer sets")
            for name in WHOLE
        ),
    ],
)
def test_layer_that_lacks_something_is_named(changes: Any, words: str) -> None:
    kept = {name: value for name, value in WHOLE.items() if name not in changes}
    model = nn.Sequential(Own(**kept, **(changes if isinstance(changes, dict) else {})))
    for refused in (
        lambda: asap_exp.compile(model, tokens(1).split(12), progress=False),
        lambda: asap_exp.compile(model, method="coarse", progress=False),
        lambda: asap_exp.convert(model, attention="sinkhorn"),
    ):
        with pytest.raises(UserError, match=words):
            refused()
    more = nn.Sequential(*model, MultiHeadAttention(DIM, HEADS))
    assert asap_exp.convert(more, attention="sinkhorn", skip=["0"])[1].attend.name == "sinkhorn"


@pytest.mark.parametrize("changes", [{"num_heads": 3}, {"head_dim": 4}])
def test_layer_with_other_heads_than_it_says(changes: dict[str, int]) -> None:
    model = nn.Sequential(Own(**{**WHOLE, **changes}))
    with pytest.raises(UserError, match=r"at 0 \(Own\) gives .* of 2 heads of 8 channels, and has"):
        asap_exp.compile(model, tokens(1).split(12), progress=False)


@pytest.mark.parametrize("num_heads", [0, 3])
def test_heads_are_named_as_the_argument(num_heads: int) -> None:
    with pytest.raises(UserError, match=rf"num_heads={num_heads} must .* dim=16 a multiple"):
        MultiHeadAttention(DIM, num_heads)


@pytest.mark.parametrize("forward", [None, "model", 5])
def test_forward_must_be_a_function(teacher: Classifier, compiled: nn.Module, forward: Any) -> None:
    with pytest.raises(UserError, match=r"forward=.* must be a function of the model and a batch"):
        asap_exp.compile(teacher, torch.randn(2, 4, 8, DIM).unbind(), forward=forward)
    with pytest.raises(UserError, match=r"forward=.* must be a function of the model and a batch"):
        asap_exp.drift(compiled, tokens(9), forward=forward)
