"""Trains, compiles and evaluates what results/ shows of a task; finished runs are left as they are.

Usage: python scripts/reproduce.py digits --seeds 0 1 2 3 4
       python scripts/reproduce.py cifar            (one GPU; seed 0)

With qk_norm and without: a Sinkhorn teacher, the softmax model of the same recipe and seed, the
compiled map and the evaluation. Further arguments are overrides of the training configuration.
Then: python -m asap_exp.report
"""

import argparse
import sys

from asap_exp.composing import compose
from asap_exp.config import DistillConfig, EvaluateConfig, TrainConfig
from asap_exp.devices import choose_device
from asap_exp.distillation.compile import distill
from asap_exp.errors import UserError
from asap_exp.evaluation.evaluate import evaluate
from asap_exp.training.fit import train

COMMON = ["logger=csv"]
ON_A_GPU = ["latency.cuda_graph=true"]  # a layer of these sizes takes less time than its launch
WITH_AND_WITHOUT_QK_NORM = {
    "digits": (["task=digits"], ["task=digits", "model.qk_norm=false"]),
    "cifar": (["experiment=cifar_qknorm"], ["experiment=cifar_plain"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=tuple(WITH_AND_WITHOUT_QK_NORM))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("overrides", nargs="*", help="for the training, such as recipe.epochs=40")
    arguments = parser.parse_intermixed_args()
    try:
        for recipe in WITH_AND_WITHOUT_QK_NORM[arguments.task]:
            for seed in arguments.seeds:
                reproduce([*recipe, f"seed={seed}", *arguments.overrides, *COMMON])
    except UserError as error:
        sys.exit(f"error: {error}")


def reproduce(overrides: list[str]) -> None:
    train(compose("train", [*overrides, "attention=softmax"], TrainConfig))
    teacher = train(compose("train", [*overrides, "attention=sinkhorn"], TrainConfig))
    artifact = distill(compose("distill", [f"teacher={teacher.path}", *COMMON], DistillConfig))
    graph = ON_A_GPU if choose_device("auto").type == "cuda" else []
    evaluate(compose("evaluate", [f"artifact={artifact}", *graph, *COMMON], EvaluateConfig))


if __name__ == "__main__":
    main()
