"""Create a saved workspace and a report on wandb, for those with an account.

Usage: python scripts/dashboards.py --entity NAME [--project asap_exp] [--task cifar] [--draft]
       python scripts/dashboards.py --entity NAME --dry-run

Runs are grouped by recipe, so that a panel shows the mean over seeds and their spread. It needs the
package wandb-workspaces: pip install "asap_exp[dashboards]". --dry-run says what would be made, and
needs no account. Each call makes new ones: what you changed on wandb stays as it is.
"""

import argparse
import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

os.environ["MPLBACKEND"] = "Agg"  # before the package is imported

from asap_exp.core.console import say
from asap_exp.core.errors import UserError
from asap_exp.core.failures import sentences
from asap_exp.core.tracking import has_key, reason

STEP = "trainer/global_step"
METHODS = ("teacher", "asap", "softmax_swapped", "control_uniform")
"""Rows of an evaluation that the bars compare."""
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Part:
    """Section of the workspace and of the report: what its panels show, and of which stage."""

    title: str
    stage: str
    words: str
    panels: list[Any]


def main() -> None:
    """Make both, or say what would be made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entity", required=True, help="your name or your team's on wandb")
    parser.add_argument("--project", default="asap_exp", help="as logger.project of the stages")
    parser.add_argument("--task", help="show runs of this task alone")
    parser.add_argument("--draft", action="store_true", help="leave the report a draft")
    parser.add_argument("--dry-run", action="store_true", help="print what would be made")
    given = parser.parse_args()
    with sentences():
        check(given.entity, given.project, given.task, account=not given.dry_run)
        parts = all_parts()
        if given.dry_run:
            for part in parts:
                say(f"{part.title}: {', '.join(map(panel_name, part.panels))}")
            return
        workspace = make_workspace(given.entity, given.project, given.task, parts)
        report = make_report(given.entity, given.project, given.task, parts)
        try:
            workspace.save()
            report.save(draft=given.draft)
        except Exception as error:  # of wandb, of its server, or of the network
            raise UserError(
                f"wandb did not save it ({reason(error)}). Check --entity and --project, and that "
                "the key of `wandb login` may write there"
            ) from error
        say(f"Workspace: {workspace.url}\nReport: {report.url}")


def check(entity: str, project: str, task: str | None, *, account: bool) -> None:
    """Raise UserError if a name is none, the package is missing or, if needed, the login is."""
    for key, value in (("--entity", entity), ("--project", project), ("--task", task)):
        if value is not None and not NAME.fullmatch(value):
            raise UserError(f"{key} {value} is not allowed; use letters, digits, '.', '_' and '-'")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            'wandb-workspaces is not installed; install it with: pip install "asap_exp[dashboards]"'
        )
    if account and not has_key():
        raise UserError(
            "no key of a wandb account was found; run `wandb login` or set WANDB_API_KEY, or see "
            "what would be made with --dry-run"
        )


def all_parts() -> list[Part]:
    """Return the sections, in the order of the stages."""
    import wandb_workspaces.reports.v2 as wr

    def line(title: str, *names: str, x: str = "epoch", pattern: str | None = None) -> Any:
        return wr.LinePlot(
            title=title, x=x, y=list(names), metric_regex=pattern, groupby_rangefunc="stddev"
        )

    def plans(title: str, what: str) -> Any:
        return line(title, pattern=f"plan/[0-9]+/{what}")

    def bars(title: str, number: str) -> Any:
        metrics = [wr.SummaryMetric(f"{method}/{number}") for method in METHODS]
        return wr.BarPlot(title=title, metrics=metrics, groupby_rangefunc="stddev")

    return [
        Part(
            "Training",
            "train",
            "Loss and validation by epoch: means over the seeds of a recipe, with their spread.",
            [
                line("validation accuracy", "val/accuracy"),
                line("validation perplexity", "val/perplexity"),
                line("validation loss", "val/loss"),
                line("training loss", "train/loss_epoch"),
                line("training loss by step", "train/loss_step", x=STEP),
                line("learning rate", "lr", x=STEP),
                line("share of time that waits for data", "wait/data"),
            ],
        ),
        Part(
            "Plans",
            "train",
            "How doubly-stochastic the plans of each layer are, and how sharp.",
            [
                plans("column error", "column_error"),
                plans("entropy", "entropy"),
                plans("largest logit", "largest_logit"),
                wr.MediaBrowser(title="a plan over the training", media_keys=["plan/example"]),
            ],
        ),
        Part(
            "Maps",
            "distill",
            "How well the compiled layers fit their teacher, by layer and head.",
            [wr.WeavePanelSummaryTable(table_name="fidelity")],
        ),
        Part(
            "Evaluation",
            "evaluate",
            "The compiled model beside its teacher: quality, speed, and what was measured.",
            [
                bars("test accuracy", "accuracy"),
                bars("test perplexity", "perplexity"),
                wr.ScatterPlot(
                    title="quality against speed",
                    x=wr.SummaryMetric("asap/model_speedup"),
                    y=wr.SummaryMetric("asap/accuracy"),
                ),
                wr.WeavePanelSummaryTable(table_name="evaluation"),
                wr.MediaBrowser(
                    title="figures",
                    media_keys=[
                        f"figures/{name}"
                        for name in ("accuracy_latency", "plans", "training", "fidelity")
                    ],
                ),
            ],
        ),
    ]


def panel_name(panel: Any) -> str:
    """Return a panel's title, or the name of its table."""
    return getattr(panel, "title", None) or f"table {panel.table_name}"


def title_of(task: str | None) -> str:
    return "asap_exp" if task is None else f"asap_exp: {task}"


def with_tag(task: str | None) -> str:
    """Return the filter that chooses runs of a task."""
    return "" if task is None else f'Tags in ["{task}"]'


def make_workspace(entity: str, project: str, task: str | None, parts: list[Part]) -> Any:
    """Return the workspace: runs by recipe and stage, of one task or of all."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=title_of(task),
        sections=[ws.Section(name=p.title, panels=p.panels, is_open=True) for p in parts],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=with_tag(task), groupby=[ws.Metric("Group"), ws.Metric("JobType")]
        ),
    )


def make_report(entity: str, project: str, task: str | None, parts: list[Part]) -> Any:
    """Return the report: a section of text and panels for each part, and where the lineage is."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for part in parts:
        chosen = " and ".join(filter(None, [f'JobType == "{part.stage}"', with_tag(task)]))
        runs = wr.Runset(
            entity=entity, project=project, name=part.stage, filters=chosen, groupby=["Group"]
        )
        panels = wr.PanelGrid(runsets=[runs], panels=part.panels)
        blocks += [wr.H1(part.title), wr.P(part.words), panels]
    place = f"https://wandb.ai/{entity}/{project}/artifacts"
    lineage = wr.P(
        [
            "Data, teachers, maps and evaluations are artifacts, named by the hashes of their "
            "contents. The tab Lineage of each shows what it was made from: ",
            wr.Link(text="artifacts of this project", url=place),
        ]
    )
    return wr.Report(
        entity=entity,
        project=project,
        title=title_of(task),
        description="Doubly-stochastic attention: training, compiled maps and their evaluation",
        width="fluid",
        blocks=[*blocks, wr.H1("Lineage"), lineage],
    )


if __name__ == "__main__":
    main()
