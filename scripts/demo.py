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
from asap_exp.core.failures import sentences
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import distill
from asap_exp.evaluate.evaluate import evaluate
from asap_exp.report.report import report
from asap_exp.train.trainer import train

OUT = Path("results/demo")
LOGGER = "logger=csv"


def heading(text: str) -> None:
    """Print the heading of a stage."""
    print(f"\n== {text}", flush=True)


def main() -> None:
    """Run the four stages, and print how long they took."""
    started = time.monotonic()
    heading("1 of 4: train a Vision Transformer with Sinkhorn attention, T = 20, on digits")
    run = train(compose("train", ["experiment=demo"], TrainConfig))
    heading("2 of 4: compile every attention layer from unlabelled images")
    artifact = distill(compose("distill", [quoted("teacher", run.path), LOGGER], DistillConfig))
    heading("3 of 4: evaluate on the test split, with truncated Sinkhorn and the controls")
    evaluate(compose("evaluate", [quoted("artifact", artifact), LOGGER], EvaluateConfig))
    heading("4 of 4: report")
    report(compose("report", [quoted("run", run.path), quoted("out", OUT)], ReportConfig))
    print(f"\nThe demo took {time.monotonic() - started:.0f} s. The same stages on CIFAR-100:")
    for stage in ("train task=cifar", "distill", "evaluate", "report"):
        print(f"  make {stage}")


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with sentences():
        main()
