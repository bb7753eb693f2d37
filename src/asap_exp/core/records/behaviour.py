"""What the plans of whole models do: columns, entropy, rank by depth, corrupted images."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from asap_exp.core.typed import STRICT, Measure, Name, Share, Size

AtLeastOne = Annotated[float, Field(ge=1 - 1e-6)]


@dataclass(config=STRICT, kw_only=True)
class LayerBehaviour:
    """Plans of one layer of a model that runs; means over samples and heads.

    Plans are scaled to a mass of one per token, so that those of any scale are compared alike.
    """

    layer: str
    largest_column: Measure
    """Largest column sum of a plan; 1 if it is doubly stochastic, n if all attend to one token."""
    largest_column_of_all: Measure
    """The largest of these sums over all samples and heads."""
    column_error: Measure
    """Mean distance of a column sum from 1."""
    entropy: Measure
    """Entropy of a row in nats."""
    relative_entropy: Measure
    """The same over log n, n valid tokens: 1 for uniform attention."""


@dataclass(config=STRICT, kw_only=True)
class CorruptedAccuracy:
    """Accuracy on the same test samples as the row's own, corrupted."""

    name: Name
    severity: Size
    accuracy: Share


@dataclass(config=STRICT, kw_only=True)
class RowBehaviour:
    """Behaviour of the model of one row."""

    key: Name
    layers: list[LayerBehaviour] = Field(min_length=1)
    ranks: list[AtLeastOne]
    """Effective rank of the tokens before the first block and after each."""
    corrupted: list[CorruptedAccuracy] = Field(default_factory=list)
    """Empty for texts."""

    @property
    def changes(self) -> list[tuple[str, int]]:
        """Names and severities of the corruptions."""
        return [(each.name, each.severity) for each in self.corrupted]


@dataclass(config=STRICT, kw_only=True)
class Behaviour:
    """Behaviour of the whole models of an evaluation, on its first `samples` test samples.

    Accuracies on corrupted images are on all test samples of the evaluation.
    """

    samples: Size
    rows: list[RowBehaviour] = Field(min_length=1)

    def problems(self, keys: Sequence[str], num_layers: int, samples: int) -> Iterator[str]:
        """Yield what contradicts an evaluation of these rows, layers and test samples."""
        mine = [row.key for row in self.rows]
        if mine != [key for key in keys if key in mine]:
            yield "behaviour.rows is not about rows, each once and in their order"
        if self.samples > samples:
            yield f"behaviour.samples={self.samples} is more than test.rows={samples}"
        paths, changes = [x.layer for x in self.rows[0].layers], self.rows[0].changes
        for row in self.rows:
            if [each.layer for each in row.layers] != paths or len(paths) != num_layers:
                yield f"behaviour of {row.key} is not about the {num_layers} layers"
            if len(row.ranks) != num_layers + 1:
                yield f"behaviour of {row.key} must have {num_layers + 1} ranks"
            if row.changes != changes or len(set(changes)) < len(changes):
                yield f"behaviour of {row.key} is not on the same corrupted images as the others"
