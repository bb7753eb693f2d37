"""Models whose state_dict holds more than tensors: extra state, sparse weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import asap_exp
from asap_exp.core.tensors import fingerprint
from tests.small_model import CLASSES, DIM, Classifier, batches, compile_small, tokens


class Counting(nn.Linear):
    """A layer that keeps a note beside its weights, as those of float8 libraries do."""

    note: Any = None

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state


def noted(where: str, note: Any) -> Classifier:
    model = Classifier().eval()
    if where == "head":
        model.head = Counting(DIM, CLASSES)
        model.head.note = note
    else:
        model.first.proj = Counting(DIM, DIM)
        model.first.proj.note = note
    return model


@pytest.mark.parametrize("where", ["head", "first.proj"])
@pytest.mark.parametrize("options", [{}, {"method": "coarse", "tokens": 4, "progress": False}])
def test_extra_state_is_compiled_saved_and_loaded(
    where: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = noted(where, {"steps": 3, "scales": [torch.ones(2)]})
    if options:
        compiled = asap_exp.compile(model, **options)
    else:
        compiled = compile_small(model, batches(1, 2, rows=6), steps=("ridge",))
    asap_exp.save_compiled(compiled, tmp_path)
    loaded = asap_exp.load_compiled(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(loaded(tokens(9)), compiled(tokens(9)), rtol=0, atol=0)


def test_a_fingerprint_counts_the_extra_state_of_plain_values() -> None:
    """Each differs from the others; the last two differ in what is no value, which cannot count."""
    states: list[Any] = [None, 1, True, {"a": 1.0}, "x", [torch.ones(2)], (torch.zeros(2), 3)]
    found = [fingerprint({"weight": torch.ones(3), "_extra_state": state}) for state in states]
    assert len(set(found)) == len(states)
    objects = [fingerprint({"_extra_state": {"a": 1, "b": object()}}) for _ in range(2)]
    assert objects[0] == objects[1]


def test_fingerprint_of_tensors_alone_is_that_of_finished_runs() -> None:
    known = {"b": torch.arange(3), "a": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)}
    assert fingerprint(known) == "31af995dfbceda44be1e7ffe6ae505b5f9166809e1fa1edf30ba15ea6cdc1a2e"


def test_fingerprint_of_a_sparse_tensor_is_of_its_values() -> None:
    dense = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    assert fingerprint({"x": dense.to_sparse()}) == fingerprint({"x": dense})
