"""One evaluation: every variant of one compiled teacher, measured on the test split."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from asap_exp.attention import attention_layers
from asap_exp.config import EvaluateConfig, TextTrainConfig
from asap_exp.data import TaskDataModule
from asap_exp.data.loader import BatchLoader
from asap_exp.devices import choose_device, device_name, use_cpu_threads
from asap_exp.distillation.artifact import Artifact, check_belongs, load_artifact
from asap_exp.distillation.compile import check_same_data, finished, run_data, teacher_identity
from asap_exp.errors import UserError
from asap_exp.evaluation.baseline import baseline_row
from asap_exp.evaluation.curves import training_curves
from asap_exp.evaluation.measure import measure
from asap_exp.evaluation.plans import example_plans
from asap_exp.evaluation.records import FORMAT
from asap_exp.evaluation.tables import print_evaluation
from asap_exp.evaluation.variants import TRAINED_ALIKE, Variant, variants
from asap_exp.evaluation.wandb_log import log_evaluation
from asap_exp.files import read_json, write_json
from asap_exp.manifest import manifest
from asap_exp.models import load_net
from asap_exp.ops._backend import chosen
from asap_exp.runs import (
    Run,
    all_runs,
    check_same_tokenizer,
    check_teacher,
    find_teacher,
    newest_artifact,
    public_config,
    short_hash,
    without,
)
from asap_exp.tracking import wandb_run


def evaluate(config: EvaluateConfig) -> Path:
    """Measures a compiled map beside its teacher; returns the path of the record."""
    run, folder = find_compiled(config)
    device = choose_device(config.accelerator)
    if config.latency.cuda_graph and device.type != "cuda":
        raise UserError("latency.cuda_graph=true needs a GPU; choose false")
    use_cpu_threads(run.config.trainer.cpu_threads)
    net = load_net(run, device)
    artifact = load_artifact(folder)
    check_belongs(artifact, teacher_identity(run, net), folder)
    twins = {name: find_twin(run, name, config) for name in TRAINED_ALIKE}
    nets = {name: load_net(twin, device) for name, twin in twins.items() if twin is not None}
    data = run_data(run, config.data.root, config.data.cache, config.batch_size, device)
    test = data.test_dataloader(max_rows=config.max_test_rows)
    check_same_tokenizer(data.identity, run)
    rows = variants(net, artifact, config.truncations, nets)

    check_enough(config, data)
    public = public_config(config)
    out = run.path / "evaluate" / evaluation_key(artifact, data, device, public)
    facts = {
        "stage": "evaluate",
        "seed": run.config.seed,
        "teacher": run.name,
        "config": public,
        "data": data.identity,
    }
    with (
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
        metrics = {
            "format": FORMAT,
            "run": run.name,
            "task": run.config.task.name,
            "data": run.config.data.name,
            "seed": run.config.seed,
            "qk_norm": run.config.model.qk_norm,
            "artifact": artifact.identity,
            **{f"{name}_run": twin and twin.name for name, twin in twins.items()},
            "samples": data.noun,
            "objective": "mlm" if run.config.masked_tokens else "classification",
            "test": {
                "rows": data.identity["test_rows"],
                "of": data.identity["test_rows_in_all"],
            },
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
            "fidelity": read_json(folder / "fidelity.json"),
            "curves": training_curves(run.path),
            "plans": example_plans(
                net,
                test.example(),
                run.config.trainer.precision,
                artifact.layers[-1],
                artifact.attention(artifact.layers[-1]).to(device),
            ),
            "manifests": {
                "train": run.manifest,
                "distill": read_json(folder / "manifest.json"),
                **{name: twin and twin.manifest for name, twin in twins.items()},
            },
        }
        metrics["manifests"]["evaluate"] = record
        if tracker is not None:
            log_evaluation(tracker, metrics)
    write_json(out / "metrics.json", metrics)
    print_evaluation(metrics)
    print(f"Record: {out / 'metrics.json'}")
    return out / "metrics.json"


def measured_rows(
    rows: list[Variant], data: TaskDataModule, test: BatchLoader, run: Run, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """Every variant, and for texts with a class what a linear model reaches."""
    validation = None
    if run.config.masked_tokens:
        data.setup()
        check_same_data(data, run)
        validation = data.val_dataloader()
    measured = measure(rows, test, run.config.trainer.precision, config, validation)
    if isinstance(run.config, TextTrainConfig) and not run.config.masked_tokens:
        from asap_exp.data.text import TextDataModule  # needs tokenizers, which images do not

        assert isinstance(data, TextDataModule)
        print("Fitting the linear baseline")
        measured.append(baseline_row(data.raw("train"), data.raw("test"), test.rows))
    return measured


def backend(net: nn.Module, device: torch.device) -> str:
    """On which implementation of the operators the model's attention layers run."""
    layer = next(iter(attention_layers(net).values()))
    return chosen("auto", torch.empty(1, 1, 1, layer.head_dim, device=device))


def evaluation_key(
    artifact: Artifact, data: TaskDataModule, device: torch.device, public: dict[str, Any]
) -> str:
    """Equal for evaluations of one map on the same samples, kind of device and settings."""
    return short_hash(
        {
            "artifact": artifact.identity["tensors_sha256"],
            "test": data.identity["test_sha256"],
            "device": device_name(device),
            "config": without(public, ("logger", "accelerator", "task")),
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
                f"{key}={wanted} is more than the {data.identity['test_rows']} test {data.noun} "
                "used; choose fewer, or a larger max_test_rows"
            )


def find_compiled(config: EvaluateConfig) -> tuple[Run, Path]:
    """The teacher's run and the artifact's folder, as chosen or the newest; prints which."""
    if config.artifact is not None:
        folder = Path(config.artifact)
        run = (
            Run(folder.resolve().parents[1])
            if config.teacher is None
            else Run(Path(config.teacher))
        )
        check_teacher(run, config.task.name)
        if not finished(folder):
            raise UserError(f"{folder} holds no finished map; distill again")
        print(f"Compiled map: {folder}")
        return run, folder
    if config.teacher is not None:
        candidates = [find_teacher(config.paths, config.task.name, config.teacher)]
    else:
        candidates = all_runs(config.paths, config.task.name)
    newest = [(run, newest_artifact(run)) for run in candidates]
    found = [(run, folder) for run, folder in newest if folder is not None]
    if not found:
        where = config.teacher or config.paths.runs
        task = f" task={config.task.name}" if config.task.name else ""
        raise UserError(
            f"no compiled map in {where}; make one with: "
            f"python -m asap_exp.distill{task} +layer=frozen"
        )
    run, folder = max(found, key=lambda pair: read_json(pair[1] / "manifest.json")["ended"])
    print(f"Compiled map: {folder} (the newest)")
    return run, folder


def find_twin(run: Run, attention: str, config: EvaluateConfig) -> Run | None:
    """A finished model of this attention and the same data, model, recipe and seed, if any."""
    for other in all_runs(config.paths, run.config.task.name):
        if (
            other.finished
            and other.config.attention["name"] == attention
            and other.manifest["recipe_hash"] == run.manifest["recipe_hash"]
            and other.config.seed == run.config.seed
        ):
            print(f"Model of {attention}, of the same recipe and seed: {other.path}")
            return other
    return None
