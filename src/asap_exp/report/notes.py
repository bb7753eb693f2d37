"""Notes next to a table: published figures, tasks that need no attention, old rows."""

from asap_exp.report.averages import averaged_rows
from asap_exp.report.groups import Group

PUBLISHED = {
    "cifar100": "CIFAR-100: 64.95 (a third party's index; other recipe).",
    "agnews": "AG News: 90.12 (a third party's index; trained on other rows).",
    "dbpedia": "DBpedia: 98.27 (a third party's index; other rows, another split).",
    "yelp": "Yelp Review Full: 54.54 (a third party's index; other recipe).",
    "imdb": "IMDb: 87.34 (a third party's index; another split and recipe).",
}
"""Published accuracy of Sinkformers, by data set."""

NOT_REPRODUCED: dict[str, str] = {}
"""Published groups that no command of this version reproduces, by `Group.slug`, with the reason."""

NEEDLESS = (
    "Uniform attention in the teacher's place loses less than one point, so this task does not "
    "test attention."
)


def remarks(group: Group) -> list[str]:
    """Return notes: if attention is not needed, published figures, rows not reproducible."""
    found = [NEEDLESS] if attention_is_needless(group) else []
    record = group.first
    plain = not record.is_masked and record.corruption is None
    if plain and record.data in PUBLISHED:
        found.append(f"Published Sinkformer on {PUBLISHED[record.data]}")
    if group.slug in NOT_REPRODUCED:
        found.append(f"† No command of this version makes it again: {NOT_REPRODUCED[group.slug]}")
    return found


def mark(group: Group) -> str:
    """Return the mark after the title of a group that no command of this version reproduces."""
    return " †" if group.slug in NOT_REPRODUCED else ""


def attention_is_needless(group: Group) -> bool:
    """Return True if uniform attention in every layer costs a classifier less than one point."""
    accuracy = {row.key: row.mean("accuracy") for row in averaged_rows(group)}
    record, uniform = group.first, accuracy.get("control_uniform")
    if record.is_masked or not record.all_layers or uniform is None:
        return False
    return accuracy["teacher"] - uniform < 0.01
