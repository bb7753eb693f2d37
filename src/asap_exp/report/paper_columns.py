"""Our records of each of the paper's tasks, and the columns that they make."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from asap_exp.report.groups import Group, kind
from asap_exp.report.paper_maps import with_better_maps
from asap_exp.report.paper_tasks import COPIES, RECENT, TASKS, TRAINED, PaperTask, rows_of


def chosen_groups(groups: Iterable[Group]) -> dict[str, Group]:
    """Return the records that stand for each task, by the title of their column.

    Of the Sinkhorn teachers with every layer compiled, on clean images and the usual split: those
    of most epochs, then with most rivals of the same recipe, then with most seeds, then with the
    norm on queries and keys, then one's own, then with most rows. No accuracy has a say in it. ASAP
    may be another record's of the same teachers: see `with_better_maps`.

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
        first = max(mine, key=rank)
        found[task.title] = with_better_maps(first, mine)
        shorter = [group for group in mine if is_shorter(group, first)]
        if shorter:
            second = max(shorter, key=lambda group: (len(further(group, first)), rank(group)))
            found[shorter_task(task, second).title] = with_better_maps(second, mine)
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
    return replace(task, title=f"{task.title} in {epochs(group)} epochs")


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
    return title.startswith(f"{task.title} in ")


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
