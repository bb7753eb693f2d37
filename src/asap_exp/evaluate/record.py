"""Record of an evaluation, written as JSON: measurements, their subject and settings."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asap_exp.attention import attention_layers
from asap_exp.calibration.artifact import load_fidelity
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.devices import device_name
from asap_exp.core.files import read_json
from asap_exp.core.manifest import outcome
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.sealed import sealed
from asap_exp.core.training_log import own_curves
from asap_exp.evaluate.measure import Measured
from asap_exp.evaluate.resolve import Subject
from asap_exp.report.records import FORMAT, METRICS, write_record


def write(
    folder: Path,
    subject: Subject,
    measured: Measured,
    config: EvaluateConfig,
    manifest: dict[str, Any],
) -> EvaluationRecord:
    """Write the record into `folder`; `manifest` is that of the evaluation, still running.

    The record precedes the finished manifest, so that a finished evaluation always has one.
    """
    content = described(subject, config, measured)
    content |= {"rows": measured.rows, "drift": measured.drift, "plans": measured.plans}
    if measured.tested is not None:
        content["right"] = measured.tested.stored()
    if measured.behaviour is not None:
        content["behaviour"] = measured.behaviour
    content["manifests"] = {
        "train": read_json(subject.run.path / "manifest.json"),
        "distill": read_json(subject.folder / "manifest.json"),
        **{
            name: run and read_json(run.path / "manifest.json")
            for name, run in subject.baselines.items()
        },
        **more_manifests(subject),
        "evaluate": sealed(manifest | outcome(manifest, "finished")),
    }
    return write_record(folder / METRICS, content)


def more_manifests(subject: Subject) -> dict[str, Any]:
    """Return the manifests of further coarse runs and of rivals, if there are any."""
    coarse = [read_json(run.path / "manifest.json") for run in subject.more_baselines]
    rivals = {key: read_json(run.path / "manifest.json") for key, run in subject.rivals.items()}
    found = {"more_coarse": coarse, "rivals": rivals}
    return {key: manifests for key, manifests in found.items() if manifests}


def described(subject: Subject, config: EvaluateConfig, measured: Measured) -> dict[str, Any]:
    """Return the fields of the record about what was measured and how."""
    run, data, more = subject.run, subject.data, subject.more_baselines
    rivals = {key: rival.name for key, rival in subject.rivals.items()}
    return {
        "format": FORMAT,
        "run": run.name,
        "task": run.config.task.name,
        "data": run.config.data.name,
        "seed": run.config.seed,
        "qk_norm": run.config.model.qk_norm,
        "artifact": subject.artifact.identity,
        "maps": subject.points,
        **{f"{name}_run": run and run.name for name, run in subject.baselines.items()},
        **({"more_coarse_runs": [run.name for run in more]} if more else {}),
        **({"rival_runs": rivals} if rivals else {}),
        "samples": data.sample_name,
        "objective": data.objective.name,
        "test": {"rows": data.identity["test_rows"], "of": data.identity["test_rows_in_all"]},
        "corruption": asdict(config.corruption) if config.corruption.name else None,
        "device": device_name(subject.device),
        "precision": subject.precision,
        "fidelity_samples": config.fidelity_samples,
        "num_layers": len(attention_layers(subject.net)),
        "latency": {
            "batch_size": config.latency.batch_size,
            "rounds": config.latency.rounds,
            "compiled": False,
            "cuda_graph": measured.cuda_graph,
            "backend": backend(subject.net, subject.device),
        },
        "fidelity": load_fidelity(subject.folder, subject.artifact),
        "curves": own_curves(run),
    }


def backend(net: nn.Module, device: torch.device) -> str:
    """Name the implementation of the operators that the model's attention layers run on."""
    return next(iter(attention_layers(net).values())).backend_on(device)
