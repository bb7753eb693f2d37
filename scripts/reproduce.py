"""Trains, compiles and evaluates what results/ shows of a task; finished runs are left as they are.

Usage: python scripts/reproduce.py digits --seeds 0 1 2 3 4
       python scripts/reproduce.py imdb             (one GPU; seed 0)

Of digits and cifar with qk_norm and without, of the others as in conf/experiment/TASK.yaml: a
Sinkhorn teacher, the softmax model of the same recipe and seed, the compiled map and the
evaluation. agnews, dbpedia and imdb are first trained to predict masked tokens of their own
training texts, for softmax alike. Further arguments are overrides of the training configuration;
--pretrain holds those of the pre-training. Then: python -m asap_exp.report
"""

import argparse
import sys

from asap_exp.composing import compose
from asap_exp.config import DistillConfig, EvaluateConfig, TrainConfig
from asap_exp.devices import choose_device
from asap_exp.distillation.compile import distill
from asap_exp.errors import UserError
from asap_exp.evaluation.evaluate import evaluate
from asap_exp.runs import Run
from asap_exp.training.fit import train

COMMON = ["logger=csv"]
ON_A_GPU = ["latency.cuda_graph=true"]  # a layer of these sizes takes less time than its launch
RECIPES = {
    "digits": (["task=digits"], ["task=digits", "model.qk_norm=false"]),
    "cifar": (["experiment=cifar_qknorm"], ["experiment=cifar_plain"]),
    "agnews": (["experiment=agnews"],),
    "dbpedia": (["experiment=dbpedia"],),
    "imdb": (["experiment=imdb"],),
    "wikitext": (["experiment=wikitext"],),
}
PRETRAINED = ("agnews", "dbpedia", "imdb")
ATTENTIONS = ("softmax", "sinkhorn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=tuple(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pretrain", nargs="+", default=[], help="such as recipe.epochs=20")
    parser.add_argument("overrides", nargs="*", help="for the training, such as recipe.epochs=40")
    arguments = parser.parse_intermixed_args()
    try:
        for recipe in RECIPES[arguments.task]:
            for seed in arguments.seeds:
                options = [f"seed={seed}", *COMMON]
                initial = pretrained(arguments.task, [*options, *arguments.pretrain])
                reproduce([*recipe, *options, *arguments.overrides], initial)
    except UserError as error:
        sys.exit(f"error: {error}")


def trained(overrides: list[str]) -> Run:
    return train(compose("train", overrides, TrainConfig))


def pretrained(task: str, overrides: list[str]) -> dict[str, list[str]]:
    """By attention, the override with which a model starts from its pre-trained encoder."""
    if task not in PRETRAINED:
        return {attention: [] for attention in ATTENTIONS}
    runs = {
        attention: trained([f"task={task}_mlm", f"attention={attention}", *overrides])
        for attention in ATTENTIONS
    }
    return {attention: [f"init_from={run.path}"] for attention, run in runs.items()}


def reproduce(overrides: list[str], initial: dict[str, list[str]]) -> None:
    runs = {
        attention: trained([*overrides, f"attention={attention}", *initial[attention]])
        for attention in ATTENTIONS
    }
    teacher = f"teacher={runs['sinkhorn'].path}"
    artifact = distill(compose("distill", [teacher, *COMMON], DistillConfig))
    graph = ON_A_GPU if choose_device("auto").type == "cuda" else []
    evaluate(compose("evaluate", [f"artifact={artifact}", *graph, *COMMON], EvaluateConfig))


if __name__ == "__main__":
    main()
