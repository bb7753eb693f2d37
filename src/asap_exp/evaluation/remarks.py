"""What must be said beside a table: subsets, published figures, where attention is not needed."""

from typing import Any

from asap_exp.evaluation.records import Group, averaged_rows
from asap_exp.evaluation.tables import is_masked

PUBLISHED = {
    "cifar100": "CIFAR-100: 64.95 (a third party's index; other recipe).",
    "agnews": "AG News: 90.12 (a third party's index; trained on other rows).",
    "dbpedia": "DBpedia: 98.27 (a third party's index; other rows, another split).",
    "yelp": "Yelp Review Full: 54.54 (a third party's index; other recipe).",
    "imdb": "IMDb: 87.34 (a third party's index; another split and recipe).",
}
"""Of Sinkformers, by data set."""


def remarks(group: Group) -> list[str]:
    """What must be known beside the table: whether attention is needed, what was published."""
    found = [NEEDLESS] if attention_is_needless(group) else []
    if not is_masked(group.first) and group.first["data"] in PUBLISHED:
        found.append(f"Published Sinkformer on {PUBLISHED[group.first['data']]}")
    return found


NEEDLESS = (
    "Uniform attention in the teacher's place loses less than one point here: "
    "attention is not needed, and no number above is its merit."
)


def attention_is_needless(group: Group) -> bool:
    """Whether the classifier stays within one point with uniform attention in every layer."""
    rows = {row["key"]: row["accuracy"] for row in averaged_rows(group)}
    teacher, uniform = rows.get("teacher"), rows.get("control_uniform")
    if is_masked(group.first) or not all_layers(group) or teacher is None or uniform is None:
        return False
    return teacher["mean"] - uniform["mean"] < 0.01


def is_subset(record: dict[str, Any]) -> bool:
    """Whether the training or the test split is not the whole one of that name."""
    train, test = record["manifests"]["train"]["data"], record["test"]
    return train["train_split_rows"] != train["train_split_rows_in_all"] or (
        test["rows"] != test["of"]
    )


def all_layers(group: Group) -> bool:
    return len(group.first["artifact"]["layers"]) == group.first["num_layers"]
