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

import asap_exp
from asap_exp.attention import AttentionLayer, SinkhornAttention
from asap_exp.calibration.batches import num_samples, on_device
from asap_exp.core.errors import UserError
from tests.attention.convertible import transformers
from tests.small_model import DIM, Classifier, compile_small, tokens

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


def encoding(items: dict[str, Tensor]) -> Any:
    return transformers("tokenization_utils_base").BatchEncoding(items)


def output(**items: Tensor) -> Any:
    return transformers("modeling_outputs").BaseModelOutput(**items)


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
        (lambda x: encoding({"x": x}), lambda batch: batch.x),
        (lambda x: output(last_hidden_state=x), lambda batch: batch.last_hidden_state),
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


@pytest.mark.parametrize("steps", [("ridge",), ("ridge", "learned_slices")])
def test_a_loader_may_refill_its_memory(teacher: Classifier, steps: tuple[str, ...]) -> None:
    def refilled() -> Iterator[Any]:
        buffer = {"x": torch.empty_like(tokens(1, rows=6))}
        for seed in SEEDS:
            buffer["x"].copy_(tokens(seed, rows=6))
            yield buffer

    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["x"])

    plain = [tokens(seed, rows=6) for seed in SEEDS]
    found = compile_small(teacher, refilled(), forward=forward, steps=steps).asap_artifact
    wanted = compile_small(teacher, plain, steps=steps).asap_artifact
    assert_same_fit(found.tensors, wanted.tensors)


class WithBuffers(nn.Module):
    """A model that writes its keys and its mask into the same memory in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Cached()
        self.mask = torch.zeros(6, 8, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        self.mask.copy_(x[..., 0] > 1)
        return self.attention(x, self.mask)


class Cached(AttentionLayer):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 1, DIM
        self.attend = SinkhornAttention(num_iters=8)
        self.keys = torch.zeros(6, 1, 8, DIM)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x[:, None]
        return self.attended(x, self.keys.copy_(2 * x), x, key_padding_mask=mask)


class WithoutBuffers(WithBuffers):
    def forward(self, x: Tensor) -> Tensor:
        self.mask, self.attention.keys = self.mask.clone(), self.attention.keys.clone()
        return super().forward(x)


def test_a_model_may_refill_its_memory() -> None:
    plain = [tokens(seed, rows=6) for seed in SEEDS]
    fits = [compile_small(kind(), plain).asap_artifact for kind in (WithBuffers, WithoutBuffers)]
    assert_same_fit(fits[0].tensors, fits[1].tensors)


def test_two_batches_are_read_however_large_they_are(teacher: Classifier) -> None:
    """One to fit on and one to check on, and no third."""
    plain = [tokens(seed, rows=6) for seed in SEEDS]
    for samples in (2, 6, 7, 12):
        assert_same_fit(
            compiled_on(teacher, plain, samples=samples), compiled_on(teacher, plain[:2])
        )


def test_empty_batches_are_passed_over(teacher: Classifier) -> None:
    plain = [tokens(seed, rows=6) for seed in SEEDS]
    empty = plain[0][:0]
    with_empty = [empty, *plain[:2], empty, *plain[2:], empty]
    assert_same_fit(compiled_on(teacher, with_empty), compiled_on(teacher, plain))
    with pytest.raises(UserError, match=r"gave 1 batch beside 2 without samples, and at least two"):
        compiled_on(teacher, [empty, plain[0], empty])
    with pytest.raises(
        UserError, match=r"gave no batches beside 2 without samples, and at least two"
    ):
        compiled_on(teacher, [empty, empty])


def test_samples_are_counted_by_a_tensor_that_has_some() -> None:
    assert num_samples({"boxes": torch.ones(0, 4), "x": torch.ones(5, 3)}) == 5


def test_forward_may_change_its_batch(teacher: Classifier) -> None:
    """Each pass over the data begins with the batches that the loader gave."""

    def changing(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch.pop("x").add_(1))

    def leaving(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"] + 1)

    found = []
    for forward in (changing, leaving):
        batches = [{"x": tokens(seed, rows=6)} for seed in SEEDS]
        compiled = compile_small(teacher, batches, steps=("ridge", "end_to_end"), forward=forward)
        artifact = compiled.asap_artifact
        found.append(artifact.tensors | {"errors": artifact.identity["column_error"]})
        assert torch.equal(batches[0]["x"], tokens(SEEDS[0], rows=6))
    assert_same_fit(*found)


@pytest.mark.parametrize("index", [0, 3])
def test_a_batch_of_padding_alone_is_refused(
    teacher: Classifier, compiled: nn.Module, index: int
) -> None:
    """As if 1 were a token, as in the attention_mask of transformers."""

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch)

    padded = [(tokens(i, rows=6), torch.full((6, 8), i == index)) for i in range(4)]
    with pytest.raises(UserError, match=rf"on calibration batch {index + 1} of 4 .* every token"):
        compile_small(teacher, padded, steps=("ridge",), forward=forward)
    with pytest.raises(UserError, match=r"on batch 1 every token is masked as padding.* True is"):
        asap_exp.drift(compiled, padded[index], forward=forward)


def test_drift_on_an_empty_batch_is_refused(compiled: nn.Module) -> None:
    with pytest.raises(UserError, match=r"the batch is empty.* of shape \(0, 8, 16\)"):
        asap_exp.drift(compiled, tokens(9)[:0])
