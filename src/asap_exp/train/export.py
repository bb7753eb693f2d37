"""Results of a finished training: the teacher's weights and their validation score."""

from typing import TypeVar

import lightning as L
from lightning.pytorch.callbacks import Timer

from asap_exp.core.config import TrainConfig
from asap_exp.core.errors import UserError
from asap_exp.core.files import write_json
from asap_exp.core.objectives import OBJECTIVES
from asap_exp.core.runs import Run
from asap_exp.core.sealed import digest
from asap_exp.core.tensors import fingerprint, require_finite, save_tensors
from asap_exp.engine.checkpoints import BestWeights, LastCheckpoint
from asap_exp.engine.history import History
from asap_exp.engine.module import net_of
from asap_exp.engine.nan_check import REMEDIES

C = TypeVar("C", bound=L.Callback)


def export(config: TrainConfig, run: Run, module: L.LightningModule, trainer: L.Trainer) -> dict:
    """Write the weights of the epoch that `recipe.keep` chooses, and return the outcome.

    Raises UserError if there is no best epoch or the weights are not finite.
    """
    best = find(trainer, BestWeights)
    if config.recipe.keep == "best":
        assert best is not None, "the configuration refuses keep=best without validation"
        if best.score is None:
            raise UserError(
                f"{run.checkpoint} has no best epoch to keep: {best.name} was NaN in every "
                "validation, or there was none; keep the last epoch with recipe.keep=last, or "
                "train again with resume=never"
            )
        state, epoch = best.weights, best.epoch
    else:
        last = find(trainer, LastCheckpoint)
        assert last is not None
        state, epoch = last.weights, last.epoch
    weights = {
        name.removeprefix("net."): tensor.cpu()
        for name, tensor in state.items()
        if name.startswith("net.")
    }
    require_finite(weights, f"the weights of epoch {epoch + 1}", REMEDIES)
    if config.trainer.strategy != "fsdp":  # there the network holds but a part of each
        net_of(module).load_state_dict(weights)
    save_tensors(run.weights, weights)
    timer, history = find(trainer, Timer), find(trainer, History)
    assert timer is not None
    assert history is not None
    write_json(run.curves, history.curves)
    outcome = {
        "kept_epoch": epoch,
        "epochs": trainer.current_epoch,
        "teacher_sha256": fingerprint(weights),
        "curves_sha256": digest({"curves": history.curves}),
        "train_seconds": round(timer.time_elapsed("train"), 2),
        "validate_seconds": round(timer.time_elapsed("validate"), 2),
    }
    if (recorded := getattr(module, "recorded", None)) is not None:
        outcome["compile_seconds"] = round(recorded.seconds, 2)
    if best is None or best.score is None:
        return outcome
    return {**outcome, **config.objective.best(best.score)}


def find(trainer: L.Trainer, kind: type[C]) -> C | None:
    """Return the trainer's callback of this kind, or None."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def summary(record: dict) -> str:
    """Describe the kept weights and their validation score in a few words."""
    epoch = f"epoch {record['kept_epoch'] + 1} of {record['epochs']}"
    for objective in OBJECTIVES.values():
        if best := objective.summary(record):
            return f"{best}, weights of {epoch}"
    return "(trained on train+val; no validation)"
