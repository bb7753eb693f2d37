"""The whole pipeline on digits in a few minutes on a CPU: train, distill, evaluate, report.

Usage: python scripts/demo.py          (or: make demo)
"""

import argparse
import os
import time
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported; figures go to files

from asap_exp.core.composing import compose, quoted
from asap_exp.core.config import EvaluateConfig, ReportConfig, TrainConfig
from asap_exp.core.console import say, shown
from asap_exp.core.failures import STAGES_KEEP, sentences
from asap_exp.core.runs import Run
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import distill
from asap_exp.evaluate.evaluate import evaluate
from asap_exp.report.groups import Group, grouped
from asap_exp.report.records import load_records
from asap_exp.report.report import report
from asap_exp.report.verdict import verdict, where_it_changes
from asap_exp.train.trainer import train

OUT = Path("results/demo")
PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "records"
LOGGER = "logger=csv"
CALIBRATION = (
    "calibration=ridge",
    "calibration.slices=8",
    "calibration.candidates=64",
    "calibration.query_features=true",
    "calibration.adaptive=true",
    "calibration.refine=1",
)
"""What explains the dual best without a step by gradient, which takes minutes on a CPU."""

RIVALS = "relaxed_truncations=[5,7,8]"
"""Relaxed truncations from clearly faster than ASAP to about as fast: the rivals to beat."""

LENGTHS = (64, 256, 1024)
"""Tokens of the published CIFAR-100 teachers that show where the answer changes."""


def heading(text: str) -> None:
    """Print the heading of a stage."""
    say(f"\n== {text}")


def main() -> None:
    """Run the four stages, and say what came of them and how long they took."""
    started = time.monotonic()
    say("Three to four minutes on two CPU cores; all files go below results/ (2 to 3 MB).")
    heading("1 of 4: train a Vision Transformer with Sinkhorn attention, T = 20, on digits")
    run = train(compose("train", ["experiment=demo"], TrainConfig))
    heading("2 of 4: compile every attention layer from unlabelled images")
    words = [quoted("teacher", run.path), LOGGER, *CALIBRATION]
    artifact = distill(compose("distill", words, DistillConfig))
    heading("3 of 4: evaluate on the test split, with truncated Sinkhorn and the controls")
    words = [quoted("artifact", artifact), LOGGER, RIVALS]
    evaluate(compose("evaluate", words, EvaluateConfig))
    heading("4 of 4: report")
    page = report(compose("report", [quoted("run", run.path), quoted("out", OUT)], ReportConfig))
    conclude(run, page, time.monotonic() - started)


def conclude(run: Run, page: Path | None, seconds: float) -> None:
    """Print the verdict on the demo's model, and where published ones differ from it."""
    (group,) = grouped(r for r in load_records(OUT / "records") if r.run == run.name)
    heading("What came of it")
    for line in verdict(group):
        say(line)
    if changes := where_it_changes(cifar_by_length()):
        say("\nWhere that changes (CIFAR-100 on a GPU, published):")
        for line in changes:
            say(f"  {line}")
    say(
        "\nOn a GPU, a few relaxed updates are the better choice up to some 160 tokens, and ASAP "
        "from 256 on, without a norm of q and k."
    )
    if page is not None:
        say(f"To see tables and figures, open {shown(page)} in a browser.")
    say(f"The demo took {seconds:.0f} s. The same stages on your own images or texts:")
    say("  make train task=images data.path=FOLDER")
    say(f"  make distill {' '.join(CALIBRATION)}")
    say("  make evaluate && make report")


def cifar_by_length() -> list[Group]:
    """Return one published CIFAR-100 teacher without the norm for each of `LENGTHS`."""
    found: dict[int | None, Group] = {}
    for group in grouped(load_records(PUBLISHED)) if PUBLISHED.is_dir() else ():
        record = group.first
        if record.data == "cifar100" and not record.qk_norm and record.corruption is None:
            found.setdefault(record.training.tokens, group)
    return [found[tokens] for tokens in LENGTHS if tokens in found]


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with sentences(STAGES_KEEP):
        main()
