"""Reader of the files that wandb writes offline, which are logs in the format of LevelDB."""

import json
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 2**15
FULL, LAST = 1, 4
"""Kinds of the piece that ends a record."""


def records(file: Path) -> Iterator[Any]:
    """Yield wandb's records in their order."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, pieces = file.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if (left := BLOCK - place % BLOCK) < HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        place += HEADER
        pieces += data[place : place + size]
        place += size
        if kind in (FULL, LAST):
            yield Record.FromString(pieces)
            pieces = b""


def kinds(file: Path) -> Counter[str]:
    """Return how many records there are of each kind."""
    return Counter(record.WhichOneof("record_type") for record in records(file))


def artifacts(file: Path) -> list[Any]:
    """Return the artifacts that are not wandb's own of a table."""
    found = [r.artifact for r in records(file) if r.WhichOneof("record_type") == "artifact"]
    return [artifact for artifact in found if artifact.type != "run_table"]


def points(file: Path) -> Counter[tuple[str, int]]:
    """Return how often each number was logged at each step of a training."""
    found: Counter[tuple[str, int]] = Counter()
    for record in records(file):
        row = {
            item.nested_key[0]: json.loads(item.value_json)
            for item in record.history.item
            if len(item.nested_key) == 1  # others are parts of pictures and tables
        }
        step = row.pop("trainer/global_step", None)
        if step is not None:
            found.update((name, step) for name in row if not name.startswith(("_", "epoch")))
    return found


def media(file: Path) -> set[str]:
    """Return the names of pictures and tables."""
    keys = [item.nested_key for record in records(file) for item in record.history.item]
    return {key[0] for key in keys if key[1:] == ["_type"]}
