"""What stands on the paper's page: claims, accuracies and comparisons, from records alone."""

from collections.abc import Callable, Iterable, Sequence

from asap_exp.core.conf_files import conf_dir, options
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.steps import StepRecord
from asap_exp.report.groups import Group
from asap_exp.report.paper_accuracy import Table, accuracy_table, comparisons
from asap_exp.report.paper_claims import claims
from asap_exp.report.paper_columns import chosen_groups, heading, task_columns, task_of
from asap_exp.report.paper_comparison import Comparison
from asap_exp.report.paper_maps import map_record
from asap_exp.report.paper_tasks import PaperTask


class Page:
    """Everything on the page, from records alone.

    `row_of` names the row of conf/reproduce that makes a record, None for one of no row.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        benchmarks: Sequence[BenchmarkRecord],
        steps: Sequence[StepRecord],
        row_of: Callable[[EvaluationRecord], str | None] = lambda record: None,
    ) -> None:
        self.groups = chosen_groups(groups)
        self.columns = task_columns(self.groups)
        self.table: Table = accuracy_table(self.groups)
        self.row_of = row_of
        self.claims = claims(self.groups, self.table, benchmarks, steps, self.making)

    def titles(self) -> list[str]:
        """Return the headings of the columns: a subset, and copies of images, are called so."""
        return [heading(task.title, self.groups.get(task.title)) for task in self.columns]

    def making(self, title: str) -> str:
        """Return the commands that make the records of a column, and those of its map of ASAP."""
        task, group = task_of(title), self.groups.get(title)
        if group is None:
            return f"make {'reproduce' if has_row(task) else 'train'} task={task.name}"
        rows = [self.row_of(record) for record in (group.first, map_record(group, group.first))]
        made = [f"row={row}" if row else f"task={task.name}" for row in rows]
        return " && ".join(f"make reproduce {words}" for words in dict.fromkeys(made))

    def untested(self) -> list[str]:
        """Return the tasks in which no test could be made, so that nothing is in bold."""
        tests = self.comparisons()
        return [t for t in self.groups if all(x.p is None for title, _, x in tests if title == t)]

    def comparisons(self) -> list[tuple[str, str, Comparison]]:
        """Return the comparisons of the teacher with each other method, by task."""
        titles = [task.title for task in self.columns if task.title in self.groups]
        return [
            (title, name, test)
            for title in titles
            for name, test in comparisons(self.groups[title], [*self.table]).items()
        ]

    def reasons(self) -> list[str]:
        """Return the reasons of the empty cells; their numbers stand in the table."""
        cells = [cell for row in self.table.values() for cell in row.values()]
        return list(dict.fromkeys(cell.reason for cell in cells if cell.reason))


def has_row(task: PaperTask) -> bool:
    """Return True if a file of conf/reproduce is of this task."""
    rows = options(conf_dir() / "reproduce")
    return any(row == task.name or row.startswith(f"{task.name}_") for row in rows)
