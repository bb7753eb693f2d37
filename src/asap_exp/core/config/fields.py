"""What a field of a configuration may hold, said at the field: its range, its choices, a path.

    epochs: Annotated[int, at_least(1), at_most(MOST_REPEATS)]
    keep: Annotated[str, one_of("best", "last")]

Each annotation is one sentence of a refusal. Of a list they hold for each entry, of an optional
field for what is not null. `asap_exp.core.schema` checks them.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from asap_exp.core.errors import (
    UserError,
    check_choice,
    check_distinct,
    check_not_empty,
    check_range,
)

MOST_THREADS = 1024
"""PyTorch asks for as many as it is told to, and dies where there are none left."""
MOST_WIDTH = 10**6
MOST_LAYERS = 10**4
MOST_REPEATS = 10**6
"""Upper bound of epochs and rounds: more never end."""
MOST_UPDATES = 10**7
MOST_SLICES = 10**5
LARGEST_RATE = 1e30
"""Upper bound of learning rates and decays; an optimiser multiplies them in single precision."""
LARGEST_SETTING = 1e9
"""Upper bound of ridge penalties, temperatures and the like: above it there is nothing to fit."""


@dataclass(frozen=True)
class Range:
    """An interval; of each entry where the value is a list."""

    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    maximum: float | None = None

    def check(self, key: str, value: Any) -> None:
        """Raises UserError where a number lies outside."""
        for number in value if isinstance(value, list) else [value]:
            assert isinstance(number, (int, float)), "its type is checked before"
            check_range(key, number, **vars(self))


@dataclass(frozen=True)
class Choice:
    """The values that there are; of each entry where the value is a list."""

    allowed: tuple[str | None, ...]

    def check(self, key: str, value: object) -> None:
        """Raises UserError where a value is none of these."""
        for each in value if isinstance(value, list) else [value]:
            check_choice(key, each, self.allowed)


@dataclass(frozen=True)
class Distinct:
    """A list that names nothing twice, and at least one where it must not be empty."""

    empty: bool = True

    def check(self, key: str, value: object) -> None:
        """Raises UserError where the list is not so."""
        assert isinstance(value, list)
        if not self.empty:
            check_not_empty(key, value)
        check_distinct(key, value)


@dataclass(frozen=True)
class Odd:
    """An odd number."""

    def check(self, key: str, value: object) -> None:
        """Raises UserError where the number is even."""
        if isinstance(value, int) and value % 2 == 0:
            raise UserError(
                f"{key}={value} is not allowed; it must be odd", key=key, value=value, allowed="odd"
            )


@dataclass(frozen=True)
class Path:
    """A path: the home directory is put in place of ~ when a configuration is read."""


Rule = Range | Choice | Distinct | Odd
PATH = Path()


def at_least(minimum: float) -> Range:
    return Range(minimum=minimum)


def at_most(maximum: float) -> Range:
    return Range(maximum=maximum)


def above(bound: float) -> Range:
    return Range(above=bound)


def within(minimum: float, maximum: float) -> Range:
    """From `minimum` to `maximum`, both allowed."""
    return Range(minimum=minimum, maximum=maximum)


def between(above: float, below: float) -> Range:
    """Above the one and below the other, neither allowed."""
    return Range(above=above, below=below)


def one_of(*allowed: str | None) -> Choice:
    return Choice(allowed)


PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu")

Accelerator = Annotated[str, one_of(*ACCELERATORS)]
Seed = Annotated[int, within(0, 2**32 - 1)]
Count = Annotated[int, at_least(1)]
Size = Annotated[int, at_least(1), at_most(2**63 - 1)]
Probability = Annotated[float, Range(minimum=0, below=1)]
"""At least 0 and below 1: of dropout and the like."""
Rate = Annotated[float, above(0), at_most(LARGEST_RATE)]
"""A learning rate."""
Rounds = Annotated[int, at_least(3), at_most(MOST_REPEATS)]
"""Timed rounds: quartiles need three."""
Relaxation = Annotated[float, between(0, 2)]
"""Of Sinkhorn updates to f + relaxation (F(f) - f), which diverge from 2 on."""
Counts = Annotated[list[int], at_least(1), at_most(MOST_REPEATS), Distinct()]
