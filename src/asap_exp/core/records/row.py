"""Row of an evaluation's record. Its fields with a `Column` are the columns of every table."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from asap_exp.core.records.columns import Column, columns_of
from asap_exp.core.records.latency import Latency
from asap_exp.core.typed import STRICT, Divergence, Measure, Name, Positive, Share

RowGroup = Literal[
    "teacher",
    "asap",
    "truncated",
    "relaxed",
    "control",
    "softmax",
    "espformer",
    "coarse",
    "imitation",
    "budget",
    "relaxed_sinkhorn",
    "rival",
    "baseline",
]
Perplexity = Annotated[float | None, Field(ge=1)]


def in_csv(title: str) -> Column:
    """Return a column that only tables.csv has."""
    return Column(title, title, 4, tables=False)


@dataclass(config=STRICT, kw_only=True)
class LayerColumns:
    """Column error of one layer's plans on test samples: the mean, and the largest of a column."""

    layer: str
    mean: Measure | None
    largest: Measure | None


@dataclass(config=STRICT, kw_only=True)
class Row:
    """Measured numbers of one method; None if not measured or not finite.

    To add a column, add a field with default None, since older records lack it.
    """

    key: Name
    label: str
    group: RowGroup
    layers: list[str]
    """Paths of the layers whose attention was replaced."""
    accuracy: Annotated[
        Share,
        Column(
            "accuracy %",
            "acc. %",
            2,
            scale=100,
            of="classification",
            readme=True,
            pareto=True,
            wandb=True,
        ),
    ]
    perplexity: Annotated[
        Perplexity,
        Column(
            "perplexity",
            "ppl",
            2,
            of="mlm",
            lower_is_better=True,
            readme=True,
            pareto=True,
            wandb=True,
        ),
    ] = None
    val_perplexity: Annotated[
        Perplexity, Column("validation perplexity", "val. ppl", 2, of="mlm")
    ] = None
    agreement: Annotated[Share | None, Column("agreement %", "agree %", 2, scale=100, wandb=True)]
    kl: Annotated[Divergence | None, Column("KL", "KL nats", 4, readme=True, pareto=True)]
    loss: Annotated[Measure | None, in_csv("loss")] = None
    l1_row_distance: Annotated[Measure | None, Column("L1 row distance", "L1 rows", 3, pareto=True)]
    column_error: Annotated[Measure | None, Column("column error", "col. err.", 4)]
    row_error: Annotated[Measure | None, in_csv("row error")]
    largest_column_error: Annotated[Measure | None, in_csv("largest column error")]
    layer_columns: list[LayerColumns] | None = None
    """Of each layer with the row's own attention, in the model's order."""
    entropy: Annotated[Measure | None, in_csv("relative entropy")]
    """Over that of a uniform row, 0 to 1; `LayerBehaviour.entropy` is in nats."""
    gate_error: Annotated[float | None, Field(ge=0), in_csv("error in the accuracy check")]
    layer_ms: Annotated[Latency | None, Column("layer ms", "layer ms", 3, readme=True, pareto=True)]
    layer_speedup: Annotated[
        Positive | None, Column("layer speed-up", "layer speed-up", 2, unit="x", wandb=True)
    ]
    model_ms: Annotated[Latency | None, Column("model ms", "model ms", 3, pareto=True)]
    model_speedup: Annotated[
        Positive | None,
        Column("model speed-up", "model speed-up", 2, unit="x", readme=True, wandb=True),
    ]
    peak_memory_mib: Annotated[Measure | None, Column("peak MiB", "peak MiB", 1)]

    @model_validator(mode="after")
    def _counts_its_updates(self) -> "Row":
        cut = self.group in ("truncated", "relaxed")
        if cut and not re.fullmatch(f"{self.group}_[0-9]{{1,9}}", self.key):
            raise ValueError(f"key={self.key} does not name the updates of a truncation")
        return self

    @model_validator(mode="after")
    def _columns_of_its_layers(self) -> "Row":
        of_layers = self.layer_columns or []
        means = [each.mean for each in of_layers if each.mean is not None]
        if self.column_error is not None and len(means) == len(of_layers) > 0:
            over = sum(means) / len(means)
            if abs(over - self.column_error) > 1e-6 * max(self.column_error, 1.0):
                raise ValueError(
                    f"column_error={self.column_error} of {self.key} is not the mean {over} of "
                    "layer_columns"
                )
        return self


COLUMNS = columns_of(Row)
COLUMN = {column.key: column for column in COLUMNS}
