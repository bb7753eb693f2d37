"""Column error of each layer of each method, averaged over a group's records: a table."""

from collections.abc import Sequence

from asap_exp.core.records.columns import Average, Column
from asap_exp.core.records.row import LayerColumns
from asap_exp.report.behaviour import mean_of, method
from asap_exp.report.groups import Group
from asap_exp.report.names import ONE_LAYER

TITLE = "Column error of each layer"
MEANING = (
    "How far the columns of a layer's plans are from their share of 1 on test samples: the mean "
    "over samples, heads and columns and, in brackets, the largest of a single column. 0 is doubly "
    "stochastic. Every layer of a compiled model is given the teacher's own queries and keys; a "
    "model trained by itself has its own."
)
ERROR = Column("column error", "", 3)

Layers = dict[str, list[LayerColumns]]
"""What was measured of a method, by layer."""


def is_measured(group: Group) -> bool:
    return any(row.layer_columns for record in group.records for row in record.rows)


def table(group: Group) -> tuple[list[str], list[list[str]]]:
    """Return titles, and a line of cells per method; one compiled layer alone is none."""
    methods: dict[tuple[str, str], Layers] = {}
    for record in group.records:
        for row in record.rows:
            if row.layer_columns and not row.key.startswith(ONE_LAYER):
                layers = methods.setdefault(method(record, row), {})
                for each in row.layer_columns:
                    layers.setdefault(each.layer, []).append(each)
    # A model trained by itself has all layers, in their order; a map may be of some.
    paths = max(methods.values(), key=len)
    lines = [
        [name, *(cell(layers.get(path, [])) for path in paths)]
        for (_, name), layers in methods.items()
    ]
    return ["method", *paths], lines


def cell(found: Sequence[LayerColumns]) -> str:
    """Write the mean over maps and seeds, and the largest error of them all."""
    means = [x.mean for x in found if x.mean is not None]
    largest = [x.largest for x in found if x.largest is not None]
    if not (means and largest):
        return ""
    return f"{ERROR.write(mean_of(means))} ({ERROR.write(Average(max(largest)))})"
