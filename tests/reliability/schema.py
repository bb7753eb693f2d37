"""Which types published records have where: what is no damage but another valid record."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]


def kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return "not finite"
        return "huge" if abs(value) > 1e30 else "negative" if value < 0 else "number"
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else "object"


def shape(place: Place) -> Place:
    """The place without positions in lists."""
    return tuple("*" if isinstance(key, int) else key for key in place)


def nodes(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value below `tree`, objects and lists too."""
    yield place, tree
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from nodes(value, (*place, key))


class Schema:
    """By shape, the kinds of values seen in `records`; `absent` where a key may be missing."""

    def __init__(self, records: list[Any]) -> None:
        self.kinds: dict[Place, set[str]] = defaultdict(set)
        keys: dict[Place, list[set[Any]]] = defaultdict(list)
        lengths: dict[Place, set[int]] = defaultdict(set)
        for record in records:
            for place, value in nodes(record):
                self.kinds[shape(place)].add(kind(value))
                if isinstance(value, dict):
                    keys[shape(place)].append(set(value))
                elif isinstance(value, list):
                    lengths[shape(place)].add(len(value))
        for place, found in keys.items():
            for key in set().union(*found) - set.intersection(*found):
                self.kinds[*place, key].add("absent")
        for place, found_lengths in lengths.items():
            if len(found_lengths) > 1 and place[-1:] != ("*",):  # a row's length is the others'
                self.kinds[*place, "*"].add("absent")

    def allows(self, place: Place, new: str) -> bool:
        """Whether a value of kind `new` at `place` may be another record's."""
        return new in self.kinds[shape(place)]


def representatives(record: Any) -> list[Place]:
    """One place of each shape, of values that hold no others; from the middle of lists."""
    by_shape: dict[Place, list[Place]] = defaultdict(list)
    for place, value in nodes(record):
        if place and not (isinstance(value, dict | list) and value):
            by_shape[shape(place)].append(place)
    return [places[len(places) // 2] for places in by_shape.values()]
