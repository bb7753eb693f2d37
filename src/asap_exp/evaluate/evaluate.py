"""One evaluation: every variant of one compiled teacher, measured on the test split."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asap_exp.attention import attention_layers, swapped
from asap_exp.calibration.artifact import Artifact, check_belongs, load_artifact, load_fidelity
from asap_exp.calibration.drift import column_errors, drift_ratios
from asap_exp.calibration.teacher import teacher_identity
from asap_exp.calibration.truncation import truncations
from asap_exp.core.config import EvaluateConfig
from asap_exp.core.console import warn
from asap_exp.core.devices import choose_device, device_name, use_cpu_threads
from asap_exp.core.errors import UserError
from asap_exp.core.files import read_json
from asap_exp.core.locks import part_held
from asap_exp.core.manifest import manifest, outcome
from asap_exp.core.runs import (
    Run,
    all_runs,
    check_same_tokenizer,
    drop_keys,
    finished_artifacts,
    listed,
    newest_artifact,
    public_config,
    short_hash,
    stage_command,
    stage_finished,
    unfinished_artifacts,
)
from asap_exp.core.sealed import sealed
from asap_exp.core.tracking import wandb_run
from asap_exp.core.training_log import own_curves
from asap_exp.data import TaskDataModule
from asap_exp.data.loader import BatchLoader
from asap_exp.data.run_data import check_same_data, run_data
from asap_exp.evaluate.baseline import baseline_row
from asap_exp.evaluate.corruption import corrupted
from asap_exp.evaluate.example_plan import example_plans
from asap_exp.evaluate.measure import measure
from asap_exp.evaluate.variants import TRAINED_ALIKE, Variant, further_maps, variants
from asap_exp.evaluate.wandb_log import log_evaluation
from asap_exp.models import load_net
from asap_exp.models.teachers import check_teacher, find_teacher
from asap_exp.ops.backend import chosen
from asap_exp.report.records import FORMAT, write_record
from asap_exp.report.tables import print_drift, print_evaluation


def evaluate(config: EvaluateConfig) -> Path:
    """Measures a compiled map beside its teacher; returns the path of the record."""
    run, folder = find_compiled(config)
    device = choose_device(config.accelerator)
    config.latency.check_device("latency", device.type)
    use_cpu_threads(run.config.trainer.cpu_threads)
    net = load_net(run, device)
    artifact = load_artifact(folder)
    check_belongs(artifact, teacher_identity(run, net), folder)
    twins = {name: find_twin(run, name, config) for name in TRAINED_ALIKE}
    nets = {name: load_net(twin, device) for name, twin in twins.items() if twin is not None}
    data = run_data(run, config.data.root, config.data.cache, config.batch_size, device)
    test = corrupted(data.test_dataloader(max_rows=config.max_test_rows), config.corruption)
    check_same_tokenizer(data.identity, run)
    rows = variants(net, artifact, truncations(config), nets)
    others = other_maps(run, net, folder, artifact) if config.maps == "all" else []
    further, maps = further_maps(net, artifact, others)
    rows += further

    check_enough(config, data)
    public = public_config(config)
    out = run.path / "evaluate" / evaluation_key([artifact, *others], data, device, public)
    facts = {
        "stage": "evaluate",
        "seed": run.config.seed,
        "teacher": run.name,
        "config": public,
        "data": data.identity,
    }
    with (
        part_held(run.path, out),
        wandb_run(
            config.logger,
            public,
            folder=run.path,
            group=run.group,
            job_type="evaluate",
            tags=[str(run.config.task.name), artifact.identity["calibration"]["name"]],
        ) as tracker,
        manifest(out / "manifest.json", **facts) as record,
    ):
        metrics: dict[str, Any] = {
            "format": FORMAT,
            "run": run.name,
            "task": run.config.task.name,
            "data": run.config.data.name,
            "seed": run.config.seed,
            "qk_norm": run.config.model.qk_norm,
            "artifact": artifact.identity,
            "maps": maps if config.maps == "all" else {},
            **{f"{name}_run": twin and twin.name for name, twin in twins.items()},
            "samples": data.sample_name,
            "objective": run.config.objective.name,
            "test": {
                "rows": data.identity["test_rows"],
                "of": data.identity["test_rows_in_all"],
            },
            "corruption": asdict(config.corruption) if config.corruption.name else None,
            "device": device_name(device),
            "precision": run.config.trainer.precision,
            "fidelity_samples": config.fidelity_samples,
            "num_layers": len(attention_layers(net)),
            "latency": {
                "batch_size": config.latency.batch_size,
                "rounds": config.latency.rounds,
                "compiled": False,
                "cuda_graph": config.latency.cuda_graph,
                "backend": backend(net, device),
            },
            "rows": measured_rows(rows, data, test, run, config),
            "drift": drift(net, artifact, test.first(config.fidelity_samples), run),
            "fidelity": load_fidelity(folder, artifact),
            "curves": own_curves(run),
            "plans": example_plans(
                net,
                test.example(),
                run.config.trainer.precision,
                artifact.layers[-1],
                artifact.attention(artifact.layers[-1]).to(device),
            ),
            "manifests": {
                "train": read_json(run.path / "manifest.json"),
                "distill": read_json(folder / "manifest.json"),
                **{
                    name: twin and read_json(twin.path / "manifest.json")
                    for name, twin in twins.items()
                },
            },
        }
        # The record first: nothing is called finished that is not there.
        metrics["manifests"]["evaluate"] = sealed(record | outcome(record, "finished"))
        found = write_record(out / "metrics.json", metrics)
        if tracker is not None:
            log_evaluation(tracker, found)
    print_evaluation(found)
    print_drift(metrics["drift"])
    print(f"Record: {out / 'metrics.json'}")
    return out / "metrics.json"


def drift(net: nn.Module, artifact: Artifact, samples: BatchLoader, run: Run) -> dict[str, float]:
    """Column error of each compiled layer on test samples over that at calibration."""
    device = next(net.parameters()).device
    attends = {path: artifact.attention(path).to(device) for path in artifact.layers}
    with swapped(net, attends):
        now = column_errors(net, samples, artifact.layers, run.config.trainer.precision)
    return drift_ratios(now, artifact.identity["column_error"])


def measured_rows(
    rows: list[Variant], data: TaskDataModule, test: BatchLoader, run: Run, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Every variant, and for texts with a class what a linear model reaches."""
    validation = None
    if run.config.objective.is_perplexity:
        data.setup()
        check_same_data(data, run)
        validation = data.val_dataloader()
    measured = measure(rows, test, run.config.trainer.precision, config, validation)
    if (texts := data.labelled_texts()) is not None:
        print("Fitting the linear baseline")
        measured.append(baseline_row(*texts, test.num_samples))
    return measured


def backend(net: nn.Module, device: torch.device) -> str:
    """On which implementation of the operators the model's attention layers run."""
    layer = next(iter(attention_layers(net).values()))
    return chosen("auto", torch.empty(1, 1, 1, layer.head_dim, device=device))


def evaluation_key(
    artifacts: list[Artifact], data: TaskDataModule, device: torch.device, public: dict[str, Any]
) -> str:
    """Equal for evaluations of the same maps on the same samples, kind of device and settings.

    Maps that differ in `refine`, or in what a budget chose, may have the same tensors.
    """
    return short_hash(
        {
            "artifacts": [artifact.identity for artifact in artifacts],
            "test": data.identity["test_sha256"],
            "device": device_name(device),
            "config": drop_keys(public, ("logger", "accelerator", "task")),
        }
    )


def check_enough(config: EvaluateConfig, data: TaskDataModule) -> None:
    """Refuses sizes that the test split cannot fill: a record must hold what it says."""
    for key, wanted in (
        ("fidelity_samples", config.fidelity_samples),
        ("latency.batch_size", config.latency.batch_size),
    ):
        if wanted > int(str(data.identity["test_rows"])):
            raise UserError(
                f"{key}={wanted} is more than the {data.identity['test_rows']} test "
                f"{data.sample_name} used; choose fewer, or a larger max_test_rows"
            )


def find_compiled(config: EvaluateConfig) -> tuple[Run, Path]:
    """The teacher's run and the artifact's folder, as chosen or the newest; prints which."""
    if config.artifact is not None:
        folder = Path(config.artifact)
        if not stage_finished(folder):
            raise UserError(
                f"artifact={folder} holds no finished map; give a folder that distill named, "
                "RUN/distill/HASH, or distill again"
            )
        teacher = folder.resolve().parent.parent if config.teacher is None else config.teacher
        run = Run(Path(teacher))
        check_teacher(run, config.task.name)
        print(f"Compiled map: {folder}")
        return run, folder
    if config.teacher is not None:
        candidates = [find_teacher(config.paths, config.task.name, config.teacher)]
    else:
        candidates = all_runs(config.paths, config.task.name)
    newest = [(newest_artifact(run), run) for run in candidates]
    found = [(artifact, run) for artifact, run in newest if artifact is not None]
    if not found:
        where = config.teacher or config.paths.runs
        task = [f"task={config.task.name}"] if config.task.name else []
        of_task = f" of task {config.task.name}" if task else ""
        unfinished = [str(folder) for run in candidates for folder in unfinished_artifacts(run)]
        raise UserError(
            f"no compiled map{of_task} in {where}; make one with: "
            + stage_command("distill", config.paths, *task, "+layer=frozen")
            + listed("not finished, or their manifest.json is missing", unfinished)
        )
    (_, folder), run = max(found, key=lambda pair: pair[0])
    print(f"Compiled map: {folder} (the newest)")
    return run, folder


def other_maps(run: Run, net: nn.Module, folder: Path, artifact: Artifact) -> list[Artifact]:
    """The other finished maps of `run` that replace the same layers, from the oldest on."""
    others = []
    for _, other in finished_artifacts(run):
        candidate = load_artifact(other)
        if other.name != folder.name and candidate.layers == artifact.layers:
            check_belongs(candidate, teacher_identity(run, net), other)
            others.append(candidate)
    print(f"Other maps of the same layers beside it: {len(others)}")
    return others


def find_twin(run: Run, attention: str, config: EvaluateConfig) -> Run | None:
    """A finished model of this attention and the same data, model, recipe and seed, if any."""
    for other in all_runs(config.paths, run.config.task.name):
        if (
            other.finished
            and other.config.attention["name"] == attention
            and other.manifest.recipe_hash == run.manifest.recipe_hash
            and other.config.seed == run.config.seed
        ):
            if differing := differing_data(run, other):
                warn(
                    f"{other.path} is left out: it has the recipe and seed of {run.path}, but was "
                    f"trained on other data ({', '.join(differing)}); train it again on this data"
                )
                continue
            print(f"Model of {attention}, of the same recipe and seed: {other.path}")
            return other
    return None


def differing_data(run: Run, other: Run) -> list[str]:
    """The hashes of samples in which two trainings differ; of older ones not all are known."""
    mine, its = run.manifest.data, other.manifest.data
    keys = ("train_sha256", "val_rows_sha256")
    return [key for key in keys if key in mine and key in its and mine[key] != its[key]]
