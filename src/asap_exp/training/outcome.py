"""What a finished training leaves: the teacher's weights, and how good they are on validation."""

import math

import lightning as L
from lightning.pytorch.callbacks import Timer

from asap_exp.config import TrainConfig
from asap_exp.runs import Run
from asap_exp.tensors import fingerprint, save_tensors
from asap_exp.training.checkpoints import ACCURACY, LOSS, Criterion, load_checkpoint
from asap_exp.training.classifier import Classifier


def export(config: TrainConfig, run: Run, module: Classifier, trainer: L.Trainer) -> dict:
    """Writes the teacher's weights, those of the epoch that `recipe.keep` chooses."""
    kept = run.path / "checkpoints" / f"{config.recipe.keep}.ckpt"
    checkpoint = load_checkpoint(kept)
    weights = {
        name.removeprefix("net."): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("net.")
    }
    module.net.load_state_dict(weights)
    save_tensors(run.weights, weights)
    timer = next(c for c in trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]
    outcome = {
        "kept_epoch": checkpoint["epoch"],
        "epochs": trainer.current_epoch,
        "teacher_sha256": fingerprint(weights),
        "train_seconds": round(timer.time_elapsed("train"), 2),
        "validate_seconds": round(timer.time_elapsed("validate"), 2),
    }
    score = best_score(trainer)
    if score is None:
        return outcome
    if criterion(config) is LOSS:
        return {**outcome, "best_val_perplexity": math.exp(score)}
    return {**outcome, "best_val_accuracy": score}


def criterion(config: TrainConfig) -> Criterion:
    """By what the best epoch is chosen."""
    return LOSS if config.masked_tokens else ACCURACY


def best_score(trainer: L.Trainer) -> float | None:
    scores = [c.best_model_score for c in trainer.checkpoint_callbacks]  # type: ignore[attr-defined]
    return next((score.item() for score in scores if score is not None), None)


def summary(record: dict) -> str:
    epoch = f"epoch {record['kept_epoch'] + 1} of {record['epochs']}"
    if "best_val_perplexity" in record:
        perplexity = record["best_val_perplexity"]
        return f"best validation perplexity {perplexity:.2f}, weights of {epoch}"
    if "best_val_accuracy" in record:
        accuracy = 100 * record["best_val_accuracy"]
        return f"best validation accuracy {accuracy:.2f} %, weights of {epoch}"
    return "(trained on train+val; no validation)"
