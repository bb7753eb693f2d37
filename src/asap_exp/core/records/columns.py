"""Columns of the results tables: headings and number formats."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args, get_type_hints

from asap_exp.core.records.latency import Latency

ObjectiveName = Literal["classification", "mlm"]


@dataclass(frozen=True)
class Average:
    """Mean of measured values.

    `std` is the sample standard deviation, None for a single value. A single latency is its median,
    with its `quartiles`.
    """

    mean: float
    std: float | None = None
    quartiles: tuple[float, float] | None = None


@dataclass(frozen=True)
class Column:
    """Column of the results tables, stated at the field of `Row` that holds its numbers.

    `title` is its heading in Markdown and HTML, `short` on a terminal. A number is multiplied by
    `scale`, rounded to `decimals` and followed by `unit`. `of` names the objective whose tables
    have the column; None means both. The flags say where else it is shown: in tables.md (it is
    always in tables.csv), among the few columns of README and docs, in the table of all maps, on
    wandb.
    """

    title: str
    short: str
    decimals: int
    scale: float = 1
    unit: str = ""
    of: ObjectiveName | None = None
    lower_is_better: bool = False
    tables: bool = True
    readme: bool = False
    pareto: bool = False
    wandb: bool = False
    key: str = ""
    latency: bool = False
    """Name of the field, and whether it holds a latency; `columns_of` fills them in."""

    @property
    def heading(self) -> str:
        """The heading on a terminal, of two lines: the name and the unit."""
        return self.short.replace(" ", "\n", 1)

    def write(self, x: Average | None) -> str:
        """Format mean ± deviation, or median [quartiles]; empty if not measured."""
        if x is None:
            return ""
        if x.quartiles is not None:
            low, high = map(self.number, x.quartiles)
            return f"{self.number(x.mean)} [{low}, {high}]"
        mean = f"{self.number(x.mean)}{self.unit}"
        return mean if x.std is None else f"{mean} ± {self.number(x.std)}"

    def value(self, x: float | Latency | None) -> str:
        """Format one measured value, or the median of a latency."""
        median = x.median if isinstance(x, Latency) else x
        return self.write(None if median is None else Average(median))

    def number(self, x: float) -> str:
        return f"{self.scale * x:.{self.decimals}f}"


def columns_of(kind: type) -> tuple[Column, ...]:
    """Return the columns stated at the fields of a dataclass, in order."""
    found = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value, *extras = get_args(hint) or [hint]
        for column in extras:
            if isinstance(column, Column):
                found.append(replace(column, key=name, latency=Latency in get_args(value)))
    return tuple(found)


def shown(columns: Iterable[Column], objective: ObjectiveName) -> list[Column]:
    """Return the columns shown in tables with this objective."""
    return [column for column in columns if column.of in (None, objective)]
