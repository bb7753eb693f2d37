"""Constraints stated at a configuration's fields: range, choices, path.

    epochs: Annotated[int, at_least(1), at_most(MOST_REPEATS)]
    keep: Annotated[str, one_of("best", "last")]

`asap_exp.core.schema` checks each annotation and reports it in one sentence. For a list they apply
to each entry, for an optional field to any value other than null.
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

COARSE_CHOICES = ("sequence", "grid", "random", "farthest", "kmeans", "staggered")
COARSE_GRIDS = ("grid", "staggered")
COARSE_WEIGHTS = ("equal", "voronoi")
"""Choices of a coarse dual's tokens, and their weights: those of `asap_exp.ops.subsets`."""
MOST_THREADS = 1024
"""Upper bound of CPU threads; PyTorch starts as many as requested and dies if it cannot."""
MOST_WIDTH = 10**6
MOST_LAYERS = 10**4
MOST_REPEATS = 10**6
"""Upper bound of epochs and rounds; more would never finish."""
MOST_UPDATES = 10**7
MOST_SLICES = 10**5
LARGEST_RATE = 1e30
"""Upper bound of learning rates and decays; optimisers multiply them in single precision."""
LARGEST_SETTING = 1e9
"""Upper bound of ridge penalties, temperatures and the like; beyond it a fit is meaningless."""


@dataclass(frozen=True)
class Range:
    """Interval for a number, or for each entry of a list."""

    minimum: float | None = None
    above: float | None = None
    below: float | None = None
    maximum: float | None = None

    def check(self, key: str, value: Any) -> None:
        """Raise UserError if a number lies outside the interval."""
        for number in value if isinstance(value, list) else [value]:
            assert isinstance(number, (int, float)), "its type is checked before"
            check_range(key, number, **vars(self))


@dataclass(frozen=True)
class Choice:
    """Allowed values, also for each entry of a list."""

    allowed: tuple[str | None, ...]

    def check(self, key: str, value: object) -> None:
        """Raise UserError if a value is not among the choices."""
        for each in value if isinstance(value, list) else [value]:
            check_choice(key, each, self.allowed)


@dataclass(frozen=True)
class Distinct:
    """List without duplicates; an empty one is refused unless `empty`."""

    empty: bool = True

    def check(self, key: str, value: object) -> None:
        """Raise UserError if the list has duplicates, or is empty and must not be."""
        assert isinstance(value, list)
        if not self.empty:
            check_not_empty(key, value)
        check_distinct(key, value)


@dataclass(frozen=True)
class Odd:
    """Odd number."""

    def check(self, key: str, value: object) -> None:
        """Raise UserError if the number is even."""
        if isinstance(value, int) and value % 2 == 0:
            raise UserError(
                f"{key}={value} is not allowed; it must be odd", key=key, value=value, allowed="odd"
            )


@dataclass(frozen=True)
class Portion:
    """Whole number, which counts, or a share of all with a decimal point, as Lightning takes it."""

    def check(self, key: str, value: object) -> None:
        """Raise UserError unless the number is at least 1, or a share above 0 and at most 1.0."""
        if isinstance(value, float):
            check_range(key, value, above=0, maximum=1.0)
        elif isinstance(value, int):
            check_range(key, value, minimum=1)


@dataclass(frozen=True)
class Path:
    """Path; ~ is replaced by the home directory when a configuration is read.

    One that is `written` is a folder for what a stage writes, made where it is missing.
    """

    written: bool = False


Rule = Range | Choice | Distinct | Odd | Portion
PATH = Path()
FOLDER = Path(written=True)


def at_least(minimum: float) -> Range:
    return Range(minimum=minimum)


def at_most(maximum: float) -> Range:
    return Range(maximum=maximum)


def above(bound: float) -> Range:
    return Range(above=bound)


def within(minimum: float, maximum: float) -> Range:
    """Return the range from `minimum` to `maximum`, both included."""
    return Range(minimum=minimum, maximum=maximum)


def between(above: float, below: float) -> Range:
    """Return the range from `above` to `below`, both excluded."""
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
"""Probability such as that of dropout, at least 0 and below 1."""
Rate = Annotated[float, above(0), at_most(LARGEST_RATE)]
"""Learning rate."""
Rounds = Annotated[int, at_least(3), at_most(MOST_REPEATS)]
"""Number of timed rounds; quartiles need three."""
Relaxation = Annotated[float, between(0, 2)]
"""Relaxation of the Sinkhorn updates f + relaxation (F(f) - f), which diverge from 2 on."""
Counts = Annotated[list[int], at_least(1), at_most(MOST_REPEATS), Distinct()]
