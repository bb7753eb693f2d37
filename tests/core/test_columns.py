"""Columns: stated once at the fields of a row, written one way wherever they are shown."""

from dataclasses import fields
from typing import Annotated

import pytest
from pydantic.dataclasses import dataclass

from asap_exp.core.records.columns import Average, Column, columns_of, shown
from asap_exp.core.records.latency import Latency
from asap_exp.core.records.row import COLUMN, COLUMNS, Row


def test_every_number_of_a_row_is_a_column() -> None:
    said = {"key", "label", "group", "layers", "layer_columns"}
    assert [column.key for column in COLUMNS] == [f.name for f in fields(Row) if f.name not in said]
    assert {column.key for column in COLUMNS if column.latency} == {"layer_ms", "model_ms"}


def test_a_field_with_a_column_is_one() -> None:
    @dataclass
    class Measured(Row):
        seconds: Annotated[float | None, Column("seconds", "s", 1, unit=" s", of="mlm")] = None
        further: Annotated[Latency | None, Column("further ms", "ms", 2)] = None

    *_, seconds, further = columns_of(Measured)
    assert (seconds.key, seconds.latency, further.key, further.latency) == (
        "seconds",
        False,
        "further",
        True,
    )
    assert seconds in shown([seconds, further], "mlm")
    assert shown([seconds, further], "classification") == [further]


@pytest.mark.parametrize(
    ("key", "average", "text"),
    [
        ("accuracy", Average(0.98765), "98.77"),
        ("accuracy", Average(0.9, 0.012), "90.00 ± 1.20"),
        ("model_speedup", Average(2.0, 0.25), "2.00x ± 0.25"),
        ("layer_ms", Average(1.5, quartiles=(1.25, 2.0)), "1.500 [1.250, 2.000]"),
        ("kl", None, ""),
    ],
)
def test_an_average_is_written(key: str, average: Average | None, text: str) -> None:
    assert COLUMN[key].write(average) == text


def test_one_value_is_written_without_its_quartiles() -> None:
    assert COLUMN["layer_ms"].value(Latency(median=1.5, q1=1.25, q3=2.0)) == "1.500"
    assert COLUMN["accuracy"].value(0.5) == "50.00"
    assert COLUMN["accuracy"].value(None) == ""
