"""Batches that asap_exp.compile and asap_exp.drift read: their kinds, sizes and memory."""

import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

import asap_exp
from asap_exp.calibration.batches import num_samples, on_device
from asap_exp.core.errors import UserError
from tests.small_model import Classifier, compile_small, tokens

SEEDS = range(1, 5)


class Record(dict):
    """A dict that pytree does not look into."""


@dataclass(frozen=True)
class Sample:
    x: Tensor
    name: str = "tokens"


@dataclass(frozen=True, slots=True)
class Nested:
    items: list[Sample]
    x: Tensor | None = None


def compiled_on(teacher: nn.Module, loader: Any, **options: Any) -> dict[str, Any]:
    """Return the compiled tensors, and the hash of what they were fitted to."""
    compiled = compile_small(teacher, loader, steps=("ridge",), **options)
    artifact = compiled.asap_artifact
    return artifact.tensors | {"sha256": artifact.identity["calibration_set"]["sha256"]}


def assert_same_fit(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name], x) if isinstance(x, Tensor) else found[name] == x
        for name, x in wanted.items()
    )


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda x: {"x": x}, lambda batch: batch["x"]),
        (lambda x: UserDict(x=x), lambda batch: batch["x"]),
        (lambda x: BatchEncoding({"x": x}), lambda batch: batch.x),
        (lambda x: BaseModelOutput(last_hidden_state=x), lambda batch: batch.last_hidden_state),
        (lambda x: Record(x=x), lambda batch: batch["x"]),
        (lambda x: MappingProxyType({"x": x}), lambda batch: batch["x"]),
        (Sample, lambda batch: batch.x),
        (lambda x: [UserDict(of=Nested([Sample(x)])), 3], lambda b: b[0]["of"].items[0].x),
    ],
    ids=["dict", "UserDict", "BatchEncoding", "ModelOutput", "Record", "proxy", "Sample", "nested"],
)
def test_batches_of_any_mapping_or_dataclass_are_read(
    teacher: Classifier, make: Callable[[Tensor], Any], inputs: Callable[[Any], Tensor]
) -> None:
    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(inputs(batch))

    plain = [tokens(seed, rows=6) for seed in SEEDS]
    batches = [make(x) for x in plain]
    assert_same_fit(compiled_on(teacher, batches, forward=forward), compiled_on(teacher, plain))


@pytest.mark.parametrize(
    "batch",
    [UserDict(x=[torch.ones(3)]), Record(x=[torch.ones(3)]), Nested([Sample(torch.ones(3))])],
    ids=["UserDict", "Record", "dataclass"],
)
def test_a_batch_is_moved_without_being_changed(batch: Any) -> None:
    before = copy.deepcopy(batch)
    moved = on_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert repr(batch) == repr(before)
    assert "meta" in repr(moved)
    assert num_samples(moved) == 3
