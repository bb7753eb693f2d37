"""From a frozen teacher to a compiled map: capture, fit, check, save."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import MultiHeadAttention, SinkhornAttention, attention_layers
from asap_exp.config import CalibrationConfig, DistillConfig, LayerConfig
from asap_exp.console import progress
from asap_exp.data import TaskDataModule, build_data
from asap_exp.data.loader import BatchLoader
from asap_exp.devices import choose_device, use_cpu_threads
from asap_exp.distillation.artifact import Artifact, save_artifact
from asap_exp.distillation.capture import layer_inputs
from asap_exp.distillation.fidelity import Fidelity, plan_fidelity
from asap_exp.distillation.report import fidelity_rows, print_fidelity
from asap_exp.distillation.ridge import NormalEquations, Solution, random_slices
from asap_exp.errors import UserError
from asap_exp.files import read_json, write_json
from asap_exp.manifest import manifest
from asap_exp.models import load_net
from asap_exp.runs import Run, find_teacher, public_config, short_hash
from asap_exp.tracking import wandb_run

CALIBRATION_SPLIT = "train"


def distill(config: DistillConfig) -> Path:
    """Fits the sliced-dual map to a teacher's layers; returns the artifact's folder."""
    run = find_teacher(config.paths, config.task.name, config.teacher)
    calibration = config.calibration
    device = choose_device(config.accelerator)
    use_cpu_threads(run.config.trainer.cpu_threads)
    net = load_net(run, device)
    paths = chosen_layers(config.layer, list(attention_layers(net)))
    data = run_data(run, config.data.root, config.data.cache, calibration.batch_size, device)
    data.setup()
    check_same_data(data, run)
    fit_samples, held_out = data.calibration_dataloaders(
        samples=calibration.samples,
        holdout=calibration.holdout,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
    )
    public = public_config(config) | {"layers": paths}
    folder = (
        run.path / "distill" / short_hash({"calibration": asdict(calibration), "layers": paths})
    )
    if finished(folder):
        print(f"Already compiled: {folder} (remove it to compile again)")
        return folder
    facts = {"stage": "distill", "seed": calibration.seed, "teacher": run.name, "config": public}
    with (
        wandb_run(
            config.logger,
            public,
            folder=run.path,
            group=run.group,
            job_type="distill",
            tags=[str(run.config.task.name), calibration.name],
        ) as tracker,
        manifest(folder / "manifest.json", **facts) as record,
    ):
        precision = run.config.trainer.precision
        fits = normal_equations(net, fit_samples, precision, paths, calibration)
        checks = normal_equations(net, held_out, precision, paths, calibration)
        artifact, solutions = solve(fits, net, run, fit_samples, calibration)
        replacements = {path: artifact.attention(path).to(device) for path in paths}
        fidelity = plan_fidelity(
            net,
            held_out,
            precision,
            {"asap": replacements, "teacher": {p: attention_layers(net)[p].attend for p in paths}},
        )
        rows = report_rows(paths, solutions, checks, fidelity, calibration)
        save_artifact(folder, artifact)
        write_json(folder / "fidelity.json", rows)
        record["data"] = artifact.identity["calibration_set"]
        if tracker is not None:
            log_fidelity(tracker, rows)
    print_fidelity(rows)
    print(f"Fitted on {fit_samples.rows} training {data.noun} of {run.config.data.name}")
    print(f"Compiled {len(paths)} of {len(attention_layers(net))} layers: {folder}")
    return folder


def finished(folder: Path) -> bool:
    """Whether `folder` holds a map that was written to the end."""
    file = folder / "manifest.json"
    return file.is_file() and read_json(file).get("status") == "finished"


def run_data(
    run: Run, root: str | None, cache: str | None, batch_size: int, device: torch.device
) -> TaskDataModule:
    """The data of `run`, found where it lies today if `root` or `cache` says so."""
    saved = run.config.data
    found = replace(saved, root=root or saved.root, cache=cache or saved.cache)
    return build_data(
        found, batch_size=batch_size, seed=run.config.seed, device=device, folder=run.path
    )


def check_same_data(data: TaskDataModule, run: Run) -> None:
    """Refuses training samples, or an order of them, that the teacher was not trained on."""
    now, then = data.identity["train_sha256"], run.manifest["data"]["train_sha256"]
    if now != then:
        raise UserError(
            f"the training {data.noun} of {data.config.name} found now ({data.identity['source']}, "
            f"SHA-256 {str(now)[:8]}...) are not those that {run.path} was trained on "
            f"({run.manifest['data']['source']}, {str(then)[:8]}...); give their folder with "
            "data.root=FOLDER"
        )


def chosen_layers(layer: LayerConfig, paths: list[str]) -> list[str]:
    """The module paths that `layer` names; UserError where the index is out of range."""
    if layer.which in ("frozen", "all"):
        return paths
    index = {"first": 0, "last": len(paths) - 1, "index": layer.index}[layer.which]
    assert index is not None
    if index >= len(paths):
        raise UserError(
            f"layer.index={index} is not there; the teacher has the layers 0 to {len(paths) - 1}"
        )
    return [paths[index]]


def normal_equations(
    net: nn.Module,
    samples: BatchLoader,
    precision: str,
    paths: list[str],
    calibration: CalibrationConfig,
) -> dict[str, NormalEquations]:
    """One pass of the teacher over `samples`; the sums of every chosen layer."""
    layers = attention_layers(net)
    device = next(net.parameters()).device
    sums = {}
    for number, path in enumerate(layers):
        if path in paths:
            layer = layers[path]
            seed = calibration.seed * 1000 + number
            theta = random_slices(layer.num_heads, calibration.slices, layer.head_dim, seed=seed)
            sums[path] = NormalEquations(theta.to(device))
    for inputs in progress(layer_inputs(net, samples, precision), "Calibrating", len(samples)):
        for path, equations in sums.items():
            equations.add(inputs[path], sinkhorn(layers[path]))
    return sums


def sinkhorn(layer: MultiHeadAttention) -> SinkhornAttention:
    """The teacher's attention in `layer`."""
    assert isinstance(layer.attend, SinkhornAttention), "only Sinkhorn runs are found as teachers"
    return layer.attend


def feature_slices(calibration: CalibrationConfig) -> tuple[slice, slice]:
    """Which features the map regresses on, and which the control with no slices does."""
    map_features = slice(None) if calibration.query_features else slice(0, calibration.slices)
    return map_features, slice(calibration.slices, None)


def solve(
    fits: dict[str, NormalEquations],
    net: nn.Module,
    run: Run,
    samples: BatchLoader,
    calibration: CalibrationConfig,
) -> tuple[Artifact, dict[str, Solution]]:
    map_features, query_only = feature_slices(calibration)
    tensors: dict[str, Tensor] = {}
    solutions = {}
    for path, equations in fits.items():
        solution = equations.solve(map_features, calibration.ridge)
        control = equations.solve(query_only, calibration.ridge)
        weight, query_weight = solution.weight.float().split_with_sizes(
            [calibration.slices, solution.weight.shape[1] - calibration.slices], dim=1
        )
        tensors[f"{path}.theta"] = equations.theta.cpu()
        tensors[f"{path}.weight"] = weight.cpu()
        if calibration.query_features:
            tensors[f"{path}.query_weight"] = query_weight.cpu()
        tensors[f"{path}.query_only_weight"] = control.weight.float().cpu()
        solutions[path] = solution
    identity = {
        **teacher_identity(run, net),
        "layers": list(fits),
        "slices": calibration.slices,
        "query_features": calibration.query_features,
        "refine": calibration.refine,
        "dtype": "float32",
        "calibration": asdict(calibration),
        "calibration_set": {
            "task": run.config.task.name,
            "data": run.config.data.name,
            "split": CALIBRATION_SPLIT,
            "rows": samples.rows,
            "sha256": samples.fingerprint(),
        },
    }
    return Artifact(identity, tensors), solutions


def teacher_identity(run: Run, net: nn.Module) -> dict[str, Any]:
    """What an artifact must agree in with the model that it is put into."""
    layer = next(iter(attention_layers(net).values()))
    return {
        "teacher_run": run.name,
        "teacher_sha256": run.manifest["teacher_sha256"],
        "task": run.config.task.name,
        "num_iters": sinkhorn(layer).num_iters,
        "eps": sinkhorn(layer).eps,
        "heads": layer.num_heads,
        "head_dim": layer.head_dim,
    }


def report_rows(
    paths: list[str],
    solutions: dict[str, Solution],
    checks: dict[str, NormalEquations],
    fidelity: dict[str, Fidelity],
    calibration: CalibrationConfig,
) -> list[dict[str, Any]]:
    map_features, _ = feature_slices(calibration)
    rows = []
    for path in paths:
        held_out = checks[path].r_squared(solutions[path].weight, map_features)
        rows += fidelity_rows(
            path,
            solutions[path],
            held_out,
            fidelity["asap"][path],
            fidelity["teacher"][path],
        )
    return rows


def log_fidelity(tracker: Any, rows: list[dict[str, Any]]) -> None:
    import wandb

    tracker.log({"fidelity": wandb.Table(list(rows[0]), [list(row.values()) for row in rows])})
