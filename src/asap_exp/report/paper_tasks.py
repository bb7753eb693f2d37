"""The paper's tasks and methods, figures that others published, and our records of each task."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from asap_exp.core.records.evaluation import OTHER_MAP, EvaluationRecord
from asap_exp.core.records.row import Row
from asap_exp.core.records.words import size_and_form
from asap_exp.report.groups import Group, kind
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


def chosen_groups(groups: Iterable[Group]) -> dict[str, Group]:
    """Return the records that stand for each task, by the title of their column.

    Of the Sinkhorn teachers with every layer compiled, on clean images and the usual split: those
    of most epochs, then with most rivals of the same recipe, then with most seeds, then with the
    norm on queries and keys, then one's own, then with most rows. No accuracy has a say in it.

    A recent rival that these lack may have been trained for fewer epochs, by the same number of
    tokens and norm. The records with most such rivals have a further column.
    """
    found: dict[str, Group] = {}
    usual = [group for group in groups if may_stand(group)]
    tasks = {task.data: task for task in TASKS}
    for data in dict.fromkeys(kind(group.first) for group in usual):
        if data not in tasks:
            continue
        task, mine = tasks[data], [group for group in usual if kind(group.first) == data]
        first = found[task.title] = max(mine, key=rank)
        shorter = [group for group in mine if is_shorter(group, first)]
        if shorter:
            second = max(shorter, key=lambda group: (len(further(group, first)), rank(group)))
            found[shorter_task(task, second).title] = second
    return found


def may_stand(group: Group) -> bool:
    """Return True if the records are of whole compiled Sinkhorn teachers, and of usual data."""
    record = group.first
    usual = record.training.attention.name == "sinkhorn" and record.corruption is None
    return usual and record.all_layers and record.trained_on.split != "pooled"


def rank(group: Group) -> tuple[int, int, int, bool, bool, int, str]:
    record, rivals = group.first, trained_rivals(group)
    own, rows = not group.published, len(record.rows)
    seeds = len(group.records)
    return epochs(group), len(rivals), seeds, record.qk_norm, own, rows, group.slug


def epochs(group: Group) -> int:
    """Return the epochs of the training, 0 where an older record does not say."""
    return group.first.manifests.train.epochs or 0


def trained_rivals(group: Group) -> set[str]:
    """Return the rivals of `TRAINED` that some of the records have."""
    names = {name for record in group.records for name in rows_of(record)}
    return names & {*TRAINED}


def further(group: Group, first: Group) -> set[str]:
    """Return the recent rivals that `group` has and `first` lacks."""
    return (trained_rivals(group) - trained_rivals(first)) & {*RECENT}


def is_shorter(group: Group, first: Group) -> bool:
    """Return True if `group` shows recent rivals that `first` lacks, after fewer epochs."""
    mine, other = group.first, first.first
    alike = (mine.qk_norm, mine.training.tokens) == (other.qk_norm, other.training.tokens)
    return alike and epochs(group) < epochs(first) and bool(further(group, first))


def shorter_task(task: PaperTask, group: Group) -> PaperTask:
    """Return the task as the column of a shorter recipe."""
    return replace(task, title=f"{task.title}, {epochs(group)} epochs")


def task_columns(groups: Mapping[str, Group]) -> list[PaperTask]:
    """Return the columns of the table: each task, followed by its shorter recipe if there is one.

    `groups` are those of `chosen_groups`.
    """
    found = []
    for task in TASKS:
        found.append(task)
        found += [replace(task, title=title) for title in groups if is_column_of(title, task)]
    return found


def is_column_of(title: str, task: PaperTask) -> bool:
    """Return True if this is the title of the task's shorter recipe."""
    return title.startswith(f"{task.title}, ")


def task_of(title: str) -> PaperTask:
    """Return the task of a column, whose title may name a shorter recipe."""
    (task,) = (task for task in TASKS if task.title == title or is_column_of(title, task))
    return task


def heading(title: str, group: Group | None) -> str:
    """Return the heading of a task's column."""
    if group is None:
        return title
    record = group.first
    size = record.training.data.image_size
    copies = task_of(title).title == COPIES and size is not None
    notes = [f"{size} x {size}" if copies else "", "subset" if record.is_subset else ""]
    return f"{title} ({', '.join(filter(None, notes))})" if any(notes) else title
