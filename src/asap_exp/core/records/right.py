"""Test samples that each method predicted right, packed into a record.

With them two methods of one record, or of two, can be compared sample by sample (McNemar's test).
"""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from asap_exp.core.typed import STRICT, Sha256, Size

LEVEL = 9
"""Level of zlib's compression."""


@dataclass(config=STRICT, kw_only=True)
class RightSamples:
    """Samples predicted right, by key of the row, in the order of the test split.

    `bits` are base64 of zlib's compression of the packed bits, `numpy.packbits`, of `samples`
    samples. Those of the first row are its own; those of another are the samples on which it and
    the first differ, which are few where methods agree. `labels_sha256` is the hash of the labels
    of these samples, int64 in their order: two records that share it are of the same samples, as
    far as labels tell.
    """

    samples: Size
    labels_sha256: Sha256
    bits: dict[str, str] = Field(min_length=1)

    def all(self) -> dict[str, np.ndarray]:
        """Return whether each sample was predicted right, bool `[samples]`, by key."""
        return {key: self.right(key) for key in self.bits}

    def right(self, key: str) -> np.ndarray:
        """Return whether each sample was predicted right by the row `key`, bool `[samples]`."""
        first = next(iter(self.bits))
        own = unpacked(self.bits[key], self.samples)
        return own if key == first else own ^ unpacked(self.bits[first], self.samples)

    @model_validator(mode="after")
    def _unpacks(self) -> "RightSamples":
        for key, text in self.bits.items():
            try:
                unpacked(text, self.samples)
            except (ValueError, zlib.error, binascii.Error) as error:
                raise ValueError(f"right.bits of {key} cannot be unpacked ({error})") from error
        return self


def packed_samples(right: Mapping[str, np.ndarray], labels_sha256: str) -> dict[str, Any]:
    """Return `RightSamples` as JSON: bool `[samples]` by key, and the hash of their labels."""
    (key, first), *others = right.items()
    bits = {key: packed(first), **{other: packed(own ^ first) for other, own in others}}
    return {"samples": len(first), "labels_sha256": labels_sha256, "bits": bits}


def labels_hash(labels: np.ndarray) -> str:
    """Return the SHA-256 of labels in their order."""
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()


def packed(flags: np.ndarray) -> str:
    """Return bool `[samples]` as text."""
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), LEVEL)).decode()


def unpacked(text: str, samples: int) -> np.ndarray:
    """Return what `packed` was given; raise ValueError for another number of samples."""
    content = zlib.decompress(base64.b64decode(text, validate=True))
    flags = np.unpackbits(np.frombuffer(content, np.uint8)).astype(bool)
    if len(content) != -(-samples // 8) or flags[samples:].any():
        raise ValueError(f"{len(content)} bytes are not those of {samples} samples")
    return flags[:samples]
