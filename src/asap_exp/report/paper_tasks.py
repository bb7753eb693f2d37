"""The paper's tasks and methods, and figures that others published."""

from dataclasses import dataclass

from asap_exp.core.records.evaluation import OTHER_MAP, EvaluationRecord
from asap_exp.core.records.row import Row
from asap_exp.core.records.words import size_and_form
from asap_exp.report.names import ESPFORMER, LINEAR, ONE_LAYER, SOFTMAX, method_name

SINKHORN, ASAP, COARSE = "Sinkhorn teacher", "ASAP", "coarse duals"
LOTFORMER, DIFFERENTIAL = "LOTFormer, same recipe", "differential attention, same recipe"
TRAINED = (SOFTMAX, ESPFORMER, LOTFORMER, DIFFERENTIAL)
"""Rivals that are trained by themselves; a row each, if only to say that it is missing."""
RECENT = (ESPFORMER, LOTFORMER, DIFFERENTIAL)
"""Those that are recent."""
METHODS = (SINKHORN, ASAP, "Sinkhorn, T' = 1", "Sinkhorn, T' = 3", *TRAINED, LINEAR)
"""Rows of the accuracy table in their order; other trained models and coarse duals follow."""
ATTENTIONS = {
    SINKHORN: "sinkhorn",
    SOFTMAX: "softmax",
    ESPFORMER: "espformer",
    LOTFORMER: "lotformer",
    DIFFERENTIAL: "differential",
}
"""Attention of the methods that are trained."""


@dataclass(frozen=True)
class PaperTask:
    """Task of the paper's tables; `data` is the name that records have for its data.

    A column of a shorter recipe is a task with the epochs in its title.
    """

    title: str
    data: str
    name: str
    """The task's name on a command line."""


TASKS = (
    PaperTask("CIFAR-100", "cifar100", "cifar"),
    PaperTask("Cats & Dogs", "catsdogs", "catsdogs"),
    PaperTask("AG News", "agnews", "agnews"),
    PaperTask("DBpedia-14", "dbpedia", "dbpedia"),
    PaperTask("Yelp Full", "yelp", "yelp"),
    PaperTask("IMDb", "imdb", "imdb"),
    PaperTask("WikiText-2", "wikitext2-mlm", "wikitext"),
)
COPIES = "Cats & Dogs"
"""Task whose sources have images of several sizes, which its heading tells."""
SOURCE = (
    "a third party's index (wizwand.com) of Sinkformers and ESPFormer, not checked against any "
    "paper's own tables: other models, other recipes and the full data sets"
)
PUBLISHED: dict[str, dict[str, float]] = {
    "Sinkformer, published": {
        "CIFAR-100": 64.95,
        "Cats & Dogs": 81.09,
        "AG News": 90.12,
        "DBpedia-14": 98.27,
        "Yelp Full": 54.54,
        "IMDb": 87.34,
    },
    "ESPFormer, published": {
        "CIFAR-100": 58.46,
        "Cats & Dogs": 81.23,
        "AG News": 86.50,
        "DBpedia-14": 96.58,
        "Yelp Full": 49.49,
    },
}
"""Test accuracies in per cent that others published (see SOURCE), by method and task."""


def method_of(row: Row) -> str | None:
    """Return the method of a record's row in the accuracy table; None if it has no place there.

    Rows of one method have one name, whichever version wrote them; further maps are left out.
    Coarse duals without a fit have one for either form, since their size goes with the task.
    """
    other, trained = row.key.startswith(OTHER_MAP), row.key.endswith("_trained")
    if row.key.startswith(ONE_LAYER):
        return None
    if row.key == "teacher":
        return SINKHORN
    if row.group in ("coarse", "budget") and not trained:
        size = size_and_form(row.label)
        return without_layers(row.label) if size is None else f"{COARSE}, {size[1]}"
    if row.key == "asap":
        return ASAP
    name = method_name(row.key, row.label)
    return name if trained or (name in METHODS and not other) else None


def without_layers(label: str) -> str:
    """Return a label without what says that all layers are replaced, and by which seed."""
    return label.partition(", all layers")[0].partition(", seed ")[0]


def coarse_tokens(label: str) -> str:
    """Return which tokens coarse duals are made of: "16 tokens, grid"."""
    size = size_and_form(label)
    assert size is not None, label
    left_out = (COARSE, size[1])
    return ", ".join(word for word in without_layers(label).split(", ") if word not in left_out)


def rows_of(record: EvaluationRecord) -> dict[str, Row]:
    """Return the rows of a record by method; of several of one method the first."""
    found: dict[str, Row] = {}
    for row in record.rows:
        if (name := method_of(row)) is not None:
            found.setdefault(name, row)
    return found
