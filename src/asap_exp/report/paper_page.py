"""What stands on the paper's page: claims, accuracies and comparisons, from records alone."""

from collections.abc import Iterable, Sequence

from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.steps import StepRecord
from asap_exp.report.groups import Group
from asap_exp.report.paper_accuracy import Table, accuracy_table, comparisons
from asap_exp.report.paper_claims import claims
from asap_exp.report.paper_columns import chosen_groups, heading, task_columns
from asap_exp.report.paper_comparison import Comparison


class Page:
    """Everything on the page, from records alone."""

    def __init__(
        self,
        groups: Iterable[Group],
        benchmarks: Sequence[BenchmarkRecord],
        steps: Sequence[StepRecord],
    ) -> None:
        self.groups = chosen_groups(groups)
        self.columns = task_columns(self.groups)
        self.table: Table = accuracy_table(self.groups)
        self.claims = claims(self.groups, self.table, benchmarks, steps)

    def titles(self) -> list[str]:
        """Return the headings of the columns: a subset, and copies of images, are called so."""
        return [heading(task.title, self.groups.get(task.title)) for task in self.columns]

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
