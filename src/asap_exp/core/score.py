"""The main number of a stage, by which the jobs of a sweep are ordered."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """Number that judges the outcome of one job; `value` is None if it was not measured.

    `text` is the value as a table shows it.
    """

    name: str
    value: float | None
    text: str = ""
    lower_is_better: bool = False
