"""Samples that were predicted right: packed small, unpacked exactly, and refused if damaged."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from asap_exp.core.records.right import RightSamples, labels_hash, packed_samples, unpacked

DRAW = np.random.default_rng(0)


def flags(samples: int, share: float) -> np.ndarray:
    return DRAW.random(samples) < share


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 540, 25_000])
def test_what_is_packed_comes_back(samples: int) -> None:
    right = {"teacher": flags(samples, 0.9), "asap": flags(samples, 0.5), "x": flags(samples, 0)}
    labels = DRAW.integers(0, 5, samples)
    stored = RightSamples(**json.loads(json.dumps(packed_samples(right, labels_hash(labels)))))
    assert stored.samples == samples
    for key, expected in right.items():
        assert np.array_equal(stored.right(key), expected)


def test_one_array_may_stand_for_two_methods() -> None:
    right = flags(20, 0.5)
    stored = RightSamples(
        **packed_samples({"teacher": right, "asap": right}, labels_hash(np.zeros(20)))
    )
    assert np.array_equal(stored.right("asap"), right)


def test_labels_are_told_apart_by_their_order() -> None:
    labels = np.array([0, 1, 1, 2])
    assert labels_hash(labels) == labels_hash(labels.astype(np.int32))
    assert labels_hash(labels) != labels_hash(labels[::-1])
    assert labels_hash(labels) != labels_hash(labels[:3])


def test_twenty_methods_that_agree_take_little_room() -> None:
    """25,000 texts and 20 methods, each of which differs from the teacher in 2 of 100 samples."""
    teacher = flags(25_000, 0.88)
    methods = {f"m{number}": teacher ^ flags(25_000, 0.02) for number in range(19)}
    size = len(
        json.dumps(packed_samples({"teacher": teacher, **methods}, labels_hash(np.zeros(25_000))))
    )
    assert size < 25_000


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "eJwDAAAAAAE="])
def test_damaged_bits_are_refused(text: str) -> None:
    whole = packed_samples({"teacher": flags(20, 0.5)}, labels_hash(np.zeros(20)))
    with pytest.raises(ValidationError, match=r"right\.bits of teacher cannot be unpacked"):
        RightSamples(**whole | {"bits": {"teacher": text}})


def test_bits_of_more_samples_are_refused() -> None:
    text = packed_samples({"teacher": np.ones(20, dtype=bool)}, labels_hash(np.zeros(20)))["bits"][
        "teacher"
    ]
    assert unpacked(text, 20).all()
    for samples in (17, 19, 25, 8):
        with pytest.raises(ValueError, match=f"are not those of {samples} samples"):
            unpacked(text, samples)
