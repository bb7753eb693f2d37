"""What must be said beside a table: subsets, published figures, where attention is not needed."""

from asap_exp.report.averages import averaged_rows
from asap_exp.report.groups import Group

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
    record = group.first
    plain = not record.is_masked and record.corruption is None
    if plain and record.data in PUBLISHED:
        found.append(f"Published Sinkformer on {PUBLISHED[record.data]}")
    return found


NEEDLESS = (
    "Uniform attention in the teacher's place loses less than one point here: "
    "attention is not needed, and no number above is its merit."
)


def attention_is_needless(group: Group) -> bool:
    """Whether the classifier stays within one point with uniform attention in every layer."""
    accuracy = {row.key: row.mean("accuracy") for row in averaged_rows(group)}
    record, uniform = group.first, accuracy.get("control_uniform")
    if record.is_masked or not record.all_layers or uniform is None:
        return False
    return accuracy["teacher"] - uniform < 0.01
