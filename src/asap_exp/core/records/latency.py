"""Latency in records."""

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from asap_exp.core.typed import STRICT, Positive


@dataclass(config=STRICT, kw_only=True)
class Latency:
    """Milliseconds per call: median and quartiles."""

    median: Positive
    q1: Positive
    q3: Positive

    @model_validator(mode="after")
    def _in_order(self) -> "Latency":
        if not self.q1 <= self.median <= self.q3:
            raise ValueError("the median must lie between the quartiles")
        return self
