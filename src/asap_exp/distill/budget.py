"""Compile within a budget: choose for each layer an attention fast and faithful enough."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from asap_exp.attention import AsapAttention, Attention
from asap_exp.calibration.calibrate import Calibration
from asap_exp.calibration.data import CalibrationData
from asap_exp.core.config import BudgetConfig
from asap_exp.core.console import say, show
from asap_exp.core.devices import device_of
from asap_exp.core.errors import UserError
from asap_exp.data import TaskDataModule
from asap_exp.distill.candidates import Option, ValidationScorer, make_ladders, make_options
from asap_exp.distill.config import DistillConfig
from asap_exp.distill.distill import Compiled, distill
from asap_exp.distill.search import (
    Ladders,
    Plan,
    fastest,
    fastest_that_holds,
    most_faithful_that_fits,
    total_ms,
    uniform,
)

ROUNDING = 1e-9
SMALLEST_STEP = 0.01
"""Least decrease of the limit, as a share of the layers' time, when the model does not fit."""

COMPILED, TEACHER = "compiled", "teacher"


def distill_within_budget(config: DistillConfig) -> Path:
    """Compile a teacher's layers within `config.budget`; return the artifact's folder."""
    return distill(config, partial(compile_within, config.budget))


def compile_within(
    budget: BudgetConfig, data: CalibrationData, paths: list[str], task_data: TaskDataModule
) -> Compiled:
    """Make, time and judge options on the validation split; return the plan found."""
    batches = task_data.val_dataloader()
    check_budget(budget, data, task_data, batches.num_samples)
    scorer = ValidationScorer(data, batches, budget)
    options, fits = make_options(data, paths, budget)
    ms = scorer.layer_ms(options)
    check_teacher_timed(options, ms)
    ladders = make_ladders(scorer, options, ms)
    plan = search(scorer, ladders, uniform(ladders, ms))
    seen = task_data.config.train_on == "train+val"
    found = {**outcome(scorer, ladders, plan), "seen_in_training": seen}
    print_plan(found)
    return Compiled(attends_of(ladders, plan), chosen_calibration(fits, ladders, plan), found)


def check_budget(
    budget: BudgetConfig, data: CalibrationData, task_data: TaskDataModule, rows: int
) -> None:
    """Raise UserError if a budget cannot be measured on `rows` validation samples."""
    check_measurable(budget, task_data)
    budget.latency.on("budget.latency", device_of(data.net).type)  # refuses what it cannot do
    check_enough(budget, rows, task_data.sample_name)


def check_measurable(budget: BudgetConfig, data: TaskDataModule) -> None:
    objective = data.objective
    if objective.metric != "accuracy" and budget.accuracy_drop is not None:
        raise UserError(
            f"budget.accuracy_drop={budget.accuracy_drop} is in points of accuracy, but "
            f"{objective.model} is judged by its {objective.metric}; give budget.latency_ratio "
            "instead, which takes the plan whose predictions are closest to the teacher's"
        )


def check_enough(budget: BudgetConfig, rows: int, sample_name: str) -> None:
    if budget.latency.batch_size > rows:
        raise UserError(
            f"budget.latency.batch_size={budget.latency.batch_size} is more than the {rows} "
            f"validation {sample_name}; choose fewer"
        )


def check_teacher_timed(
    options: Mapping[str, Sequence[Option]], ms: Mapping[str, Mapping[str, float]]
) -> None:
    for path, found in options.items():
        own, _ = found[-1]
        if own not in ms[path]:
            raise UserError(
                f"the teacher's own attention at {path} is wrong, so that there is nothing to "
                "compare with; look for the warning above"
            )


def search(scorer: ValidationScorer, ladders: Ladders, starts: list[Plan]) -> Plan:
    """Return the fastest plan within the accuracy, or the most faithful one within the latency."""
    if scorer.budget.latency_ratio is not None:
        return search_by_latency(scorer, ladders, starts, scorer.budget.latency_ratio)
    assert scorer.budget.accuracy_drop is not None
    least = scorer.accuracy({}) - scorer.budget.accuracy_drop / 100 - ROUNDING
    known: dict[tuple[int, ...], float] = {}

    def holds(plan: Plan) -> bool:
        key = tuple(plan.values())
        if key not in known:
            known[key] = scorer.accuracy(attends_of(ladders, plan))
        return known[key] >= least

    return fastest_that_holds(ladders, starts, holds)


def search_by_latency(
    scorer: ValidationScorer, ladders: Ladders, starts: list[Plan], ratio: float
) -> Plan:
    """Search by the sum of the layers' times, lowering the limit until the measured model fits."""
    top = {path: len(levels) - 1 for path, levels in ladders.items()}
    # All that is not attention takes the same time in every plan.
    limit = total_ms(ladders, top) - (1 - ratio) * scorer.model_ms({TEACHER: {}})[TEACHER]
    while True:
        within = partial(fits, ladders, limit)
        greedy = most_faithful_that_fits(ladders, within)
        plans = [plan for plan in (greedy, *filter(within, starts)) if plan is not None]
        plan = min(
            plans or [fastest(ladders)],
            key=lambda plan: scorer.prediction_kl(attends_of(ladders, plan)),
        )
        ms = scorer.model_ms({TEACHER: {}, COMPILED: attends_of(ladders, plan)})
        if ms[COMPILED] <= ratio * ms[TEACHER]:
            return plan
        if plan == fastest(ladders):
            raise out_of_reach(ratio, ms[COMPILED] / ms[TEACHER])
        excess = ms[COMPILED] - ratio * ms[TEACHER]
        limit = total_ms(ladders, plan) - max(excess, SMALLEST_STEP * total_ms(ladders, plan))


def out_of_reach(ratio: float, least: float) -> UserError:
    """Return the UserError for a ratio below the least one, of the fastest model."""
    return UserError(
        f"budget.latency_ratio={ratio} cannot be reached: with the fastest attention in every "
        f"layer the whole model takes {least:.3g} of the teacher's time; choose more than that"
    )


def fits(ladders: Ladders, limit: float, plan: Plan) -> bool:
    return total_ms(ladders, plan) <= limit


def attends_of(ladders: Ladders, plan: Plan) -> dict[str, Attention]:
    return {path: ladders[path][level].attend for path, level in plan.items()}


def chosen_calibration(
    fits: Mapping[str, Calibration], ladders: Ladders, plan: Plan
) -> Calibration:
    """Return the fits of the maps taken by the layers that became ASAP."""
    chosen = Calibration()
    for path, level in plan.items():
        candidate = ladders[path][level]
        if isinstance(candidate.attend, AsapAttention):
            fit = fits[candidate.label]
            chosen.maps[path], chosen.controls[path] = fit.maps[path], fit.controls[path]
            chosen.ridge[path], chosen.plan_kl[path] = fit.ridge[path], fit.plan_kl[path]
    return chosen


def outcome(scorer: ValidationScorer, ladders: Ladders, plan: Plan) -> dict[str, Any]:
    """Return the requested budget, the choice for each layer, and what the whole model reaches."""
    attends = attends_of(ladders, plan)
    ms = scorer.model_ms({TEACHER: {}, COMPILED: attends})
    return {
        "accuracy_drop": scorer.budget.accuracy_drop,
        "latency_ratio": scorer.budget.latency_ratio,
        "split": "validation",
        "rows": scorer.batches.num_samples,
        "layers": {
            path: {
                "became": ladders[path][level].label,
                "layer_ms": ladders[path][level].ms,
                "teacher_layer_ms": ladders[path][-1].ms,
                "kl_alone": ladders[path][level].kl,
            }
            for path, level in plan.items()
        },
        "teacher_accuracy": scorer.accuracy({}),
        "accuracy": scorer.accuracy(attends),
        "kl": scorer.prediction_kl(attends),
        "teacher_model_ms": ms[TEACHER],
        "model_ms": ms[COMPILED],
    }


def print_plan(found: Mapping[str, Any]) -> None:
    table = Table(title="What each layer became")
    for title in ("layer", "became", "ms", "teacher's", "KL alone"):
        table.add_column(title, justify="left" if title in ("layer", "became") else "right")
    for path, layer in found["layers"].items():
        numbers = (layer["layer_ms"], layer["teacher_layer_ms"], layer["kl_alone"])
        table.add_row(path, layer["became"], *(f"{number:.3g}" for number in numbers))
    show(table)
    say(
        f"On the {found['rows']} samples of the validation split: accuracy "
        f"{100 * found['accuracy']:.2f} %, the teacher's {100 * found['teacher_accuracy']:.2f} %; "
        f"whole model {found['model_ms']:.3g} ms, the teacher {found['teacher_model_ms']:.3g} ms "
        f"(ratio {found['model_ms'] / found['teacher_model_ms']:.3g})"
    )
    if found["seen_in_training"]:
        say(
            "note: this teacher was trained on the validation split too (data.train_on=train+val), "
            "so these accuracies are of data that it has seen; on other data it may lose more"
        )
