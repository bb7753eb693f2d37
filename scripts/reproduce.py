"""Trains, compiles and evaluates what results/ shows of a task; finished runs are left as they are.

Usage: python scripts/reproduce.py digits --seeds 0 1 2 3 4
       python scripts/reproduce.py imdb             (one GPU; seed 0)

Of digits and cifar with qk_norm and without, of the others as in conf/experiment/TASK.yaml: a
Sinkhorn teacher, the softmax model of the same recipe and seed, the compiled maps and the
evaluation. agnews, dbpedia and imdb are first trained to predict masked tokens of their own
training texts, for softmax alike; cifar_1024 starts from cifar_256. Further arguments are overrides
of the training configuration; --pretrain holds those of the pre-training. To train the two models
side by side start it twice: with --train softmax, and with --train sinkhorn, which compiles and
evaluates too and takes longer. Then: python -m asap_exp.report
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # figures are files; before anything imports matplotlib

from asap_exp.core.composing import compose, quoted
from asap_exp.core.config import EvaluateConfig, TrainConfig
from asap_exp.core.devices import choose_device
from asap_exp.core.mishaps import sentences
from asap_exp.core.runs import Run
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import distill
from asap_exp.evaluate.evaluate import evaluate
from asap_exp.train.trainer import train

COMMON = ["logger=csv"]
ON_A_GPU = ["latency.cuda_graph=true"]  # a layer of these sizes takes less time than its launch
RECIPES = {
    "digits": (["task=digits"], ["task=digits", "model.qk_norm=false"]),
    "cifar": (["experiment=cifar_qknorm"], ["experiment=cifar_plain"]),
    "cifar_plain": (["experiment=cifar_plain"],),
    "cifar_256": (["experiment=cifar_256"],),
    "cifar_1024": (["experiment=cifar_1024"],),
    "agnews": (["experiment=agnews"],),
    "dbpedia": (["experiment=dbpedia"],),
    "imdb": (["experiment=imdb"],),
    "wikitext": (["experiment=wikitext"],),
}
INITIAL = {
    "cifar_1024": "experiment=cifar_256",
    "agnews": "experiment=agnews_mlm",
    "dbpedia": "experiment=dbpedia_mlm",
    "imdb": "experiment=imdb_mlm",
}
"""What the model is first trained on, where it does not start from fresh weights."""
RIDGE, END_TO_END = ["calibration=ridge"], ["calibration=end_to_end"]
SMALL_BATCHES = ["calibration.batch_size=32"]  # of long sequences, whose plans fill the memory
LEARNED_FEW = [
    "calibration=learned_slices",
    "calibration.learned_slices.updates=300",
    *SMALL_BATCHES,
]
REFINED = ["calibration.refine=1"]
NOT_ADAPTIVE = ["calibration.adaptive=false"]
LOGITS, RELAXED = ["calibration.logits=true"], ["calibration.relaxed=true"]
THOROUGH = [
    *END_TO_END,
    "calibration.samples=20000",
    "calibration.learned_slices.updates=2000",
    "calibration.end_to_end.updates=800",
    "calibration.end_to_end.lr=0.002",
]


def three_seeds(calibration: list[str]) -> list[list[str]]:
    """With the seeds of the calibration 1, 2 and 0: the last one is the table's."""
    return [[*calibration, f"calibration.seed={seed}"] for seed in (1, 2, 0)]


CALIBRATIONS = {
    "digits": (RIDGE,),
    "cifar": (RIDGE,),
    "cifar_plain": (
        THOROUGH + NOT_ADAPTIVE,
        THOROUGH + REFINED + LOGITS,
        THOROUGH + REFINED + RELAXED,
        [*THOROUGH, *LOGITS, *RELAXED, "calibration.refine=2"],
        *three_seeds(THOROUGH + REFINED),
        *three_seeds(THOROUGH),
        *three_seeds(THOROUGH + REFINED + LOGITS + RELAXED),
        *three_seeds(THOROUGH + LOGITS),
    ),
    "cifar_256": (
        END_TO_END + NOT_ADAPTIVE,
        *three_seeds(END_TO_END + REFINED),
        *three_seeds(END_TO_END),
    ),
    "cifar_1024": (LEARNED_FEW + REFINED, LEARNED_FEW),
    "agnews": (RIDGE, *three_seeds(END_TO_END)),
    "dbpedia": (RIDGE, *three_seeds(END_TO_END)),
    "imdb": (RIDGE + SMALL_BATCHES, *three_seeds(END_TO_END + SMALL_BATCHES)),
}
"""Else ridge and end_to_end; the last one is the table's."""
EVALUATIONS = {
    "cifar_plain": [
        "truncations=[1,2,3,4,5,6,7,8,9,10,12,15]",
        "relaxed_truncations=[2,3,4,5,6,7,8,10]",
    ],
    "cifar_256": ["truncations=[1,2,3,4,5,6,7,8,10,12,15]"],
    "cifar_1024": ["truncations=[1,2,3,4,5,6,8,10]", "latency.batch_size=32"],
}
ATTENTIONS = {"softmax": ["attention=softmax"], "sinkhorn": []}
"""In the order of training: an evaluation shows the softmax model that is there. The recipe says
which Sinkhorn attention."""


def main() -> None:
    arguments = parsed()
    with sentences():
        for recipe in RECIPES[arguments.task]:
            for seed in arguments.seeds:
                common = [quoted("paths.results", arguments.results), *COMMON]
                runs = {
                    attention: trained_run(arguments, recipe, attention, [f"seed={seed}", *common])
                    for attention in (arguments.train or ATTENTIONS)
                }
                if "sinkhorn" in runs:
                    calibrations = CALIBRATIONS.get(arguments.task, (RIDGE, END_TO_END))
                    evaluation = [*EVALUATIONS.get(arguments.task, []), *common]
                    artifact = compiled(runs["sinkhorn"], calibrations, common)
                    evaluated(artifact, "all" if len(calibrations) > 1 else "one", evaluation)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=tuple(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", default="results", help="where runs go (paths.results)")
    parser.add_argument(
        "--train", nargs="+", choices=tuple(ATTENTIONS), help="of these alone; default: both"
    )
    parser.add_argument("--pretrain", nargs="+", default=[], help="such as recipe.epochs=20")
    parser.add_argument("overrides", nargs="*", help="for the training, such as recipe.epochs=40")
    return parser.parse_intermixed_args()


def trained_run(
    arguments: argparse.Namespace, recipe: list[str], attention: str, common: list[str]
) -> Run:
    """The run of the recipe, from the weights of another where the task has one."""
    common = [*common, *ATTENTIONS[attention]]
    initial = []
    if arguments.task in INITIAL:
        run = trained([INITIAL[arguments.task], *common, *arguments.pretrain])
        initial = [quoted("init_from", run.path)]
    return trained([*recipe, *common, *initial, *arguments.overrides])


def trained(overrides: list[str]) -> Run:
    return train(compose("train", overrides, TrainConfig))


def compiled(teacher: Run, calibrations: Sequence[list[str]], common: list[str]) -> Path:
    """The last of the maps."""
    for calibration in calibrations:
        overrides = [quoted("teacher", teacher.path), *calibration, *common]
        artifact = distill(compose("distill", overrides, DistillConfig))
    return artifact


def evaluated(artifact: Path, maps: str, overrides: list[str]) -> None:
    graph = ON_A_GPU if choose_device("auto").type == "cuda" else []
    overrides = [quoted("artifact", artifact), f"maps={maps}", *graph, *overrides]
    evaluate(compose("evaluate", overrides, EvaluateConfig))


if __name__ == "__main__":
    main()
