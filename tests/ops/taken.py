"""Counting how often a route was taken."""

from collections.abc import Sequence
from dataclasses import dataclass

from asap_exp.ops.routing import Taken


@dataclass(frozen=True)
class Count:
    """Calls in a record that took one route."""

    record: Sequence[Taken]
    route: str

    def __len__(self) -> int:
        return sum(taken.route == self.route for taken in self.record)
