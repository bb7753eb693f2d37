"""The paper's tasks and methods, figures that others published, and our records of each task."""

from collections.abc import Iterable
from dataclasses import dataclass

from asap_exp.core.records.evaluation import OTHER_MAP, EvaluationRecord
from asap_exp.core.records.row import Row
from asap_exp.report.groups import Group, kind
from asap_exp.report.names import ESPFORMER, LINEAR, ONE_LAYER, SOFTMAX, method_name

SINKHORN, ASAP = "Sinkhorn teacher", "ASAP"
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
    """Task of the paper's tables; `data` is the name that records have for its data."""

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
    """
    other, trained = row.key.startswith(OTHER_MAP), row.key.endswith("_trained")
    if row.key.startswith(ONE_LAYER):
        return None
    if row.key == "teacher":
        return SINKHORN
    if row.group in ("coarse", "budget") and not trained:
        return row.label.partition(", all layers")[0].partition(", seed ")[0]
    if row.key == "asap":
        return ASAP
    name = method_name(row.key, row.label)
    return name if trained or (name in METHODS and not other) else None


def rows_of(record: EvaluationRecord) -> dict[str, Row]:
    """Return the rows of a record by method; of several of one method the first."""
    found: dict[str, Row] = {}
    for row in record.rows:
        if (name := method_of(row)) is not None:
            found.setdefault(name, row)
    return found


def chosen_groups(groups: Iterable[Group]) -> dict[str, Group]:
    """Return the records that stand for each task, by its title.

    Of the Sinkhorn teachers with every layer compiled, on clean images and the usual split: those
    with most models trained by the same recipe, then with most seeds, then with the norm on queries
    and keys, then one's own, then with most rows. No accuracy has a say in it.
    """
    found: dict[str, Group] = {}
    for group in groups:
        record = group.first
        title = next((task.title for task in TASKS if task.data == kind(record)), None)
        usual = record.training.attention.name == "sinkhorn" and record.corruption is None
        pooled = record.trained_on.split == "pooled"
        if title is None or pooled or not (usual and record.all_layers):
            continue
        if title not in found or rank(group) > rank(found[title]):
            found[title] = group
    return found


def rank(group: Group) -> tuple[int, int, bool, bool, int, str]:
    record = group.first
    trained = sum(row.key.endswith("_trained") for row in record.rows)
    own = not group.published
    return trained, len(group.records), record.qk_norm, own, len(record.rows), group.slug


def heading(title: str, group: Group | None) -> str:
    """Return the heading of a task's column."""
    if group is None:
        return title
    record = group.first
    size = record.training.data.image_size
    copies = title == COPIES and size is not None
    notes = [f"{size} x {size}" if copies else "", "subset" if record.is_subset else ""]
    return f"{title} ({', '.join(filter(None, notes))})" if any(notes) else title
