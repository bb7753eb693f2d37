"""One evaluation: every variant of one compiled teacher, measured on the test split."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import LayerInputs, attention_layers, swapped
from asap_exp.config import EvaluateConfig, LatencyConfig
from asap_exp.console import progress
from asap_exp.data import ImageDataModule
from asap_exp.data.loader import DeviceLoader
from asap_exp.devices import autocast, choose_device, use_cpu_threads
from asap_exp.distillation.artifact import Artifact, check_belongs, load_artifact
from asap_exp.distillation.capture import layer_inputs
from asap_exp.distillation.compile import finished, run_data, teacher_identity
from asap_exp.distillation.fidelity import plan_fidelity
from asap_exp.distillation.report import finite
from asap_exp.errors import UserError
from asap_exp.evaluation.accuracy import compare, predict
from asap_exp.evaluation.curves import training_curves
from asap_exp.evaluation.gate import gate_error, passes
from asap_exp.evaluation.latency import Prepare, interleaved_latency
from asap_exp.evaluation.memory import peak_memory
from asap_exp.evaluation.plans import example_plans
from asap_exp.evaluation.records import FORMAT
from asap_exp.evaluation.tables import print_evaluation
from asap_exp.evaluation.variants import Variant, variants
from asap_exp.evaluation.wandb_log import log_evaluation
from asap_exp.files import read_json, write_json
from asap_exp.manifest import manifest
from asap_exp.models import load_net
from asap_exp.runs import (
    Run,
    all_runs,
    check_teacher,
    find_teacher,
    newest_artifact,
    public_config,
    short_hash,
    without,
)
from asap_exp.tracking import require_wandb, wandb_run


def evaluate(config: EvaluateConfig) -> Path:
    """Measures a compiled map beside its teacher; returns the path of the record."""
    run, folder = find_compiled(config)
    device = choose_device(config.accelerator)
    use_cpu_threads(run.config.trainer.cpu_threads)
    net = load_net(run, device)
    artifact = load_artifact(folder)
    check_belongs(artifact, teacher_identity(run, net), folder)
    softmax_run = find_softmax_twin(run, config)
    softmax_net = None if softmax_run is None else load_net(softmax_run, device)
    data = run_data(run, config.data.root, config.data.cache, config.batch_size, device)
    if config.logger.wandb:
        require_wandb()
    test = data.test_dataloader(max_rows=config.max_test_rows)
    rows = variants(net, artifact, config.truncations, softmax_net)

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
        manifest(out / "manifest.json", **facts) as record,
        wandb_run(
            config.logger,
            public,
            folder=run.path,
            group=run.group,
            job_type="evaluate",
            tags=[str(run.config.task.name), artifact.identity["calibration"]["name"]],
        ) as tracker,
    ):
        metrics = {
            "format": FORMAT,
            "run": run.name,
            "task": run.config.task.name,
            "data": run.config.data.name,
            "seed": run.config.seed,
            "qk_norm": run.config.model.qk_norm,
            "artifact": artifact.identity,
            "softmax_run": None if softmax_run is None else softmax_run.name,
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
                "cuda_graph": False,
            },
            "rows": measure(rows, test, run.config.trainer.precision, config),
            "fidelity": read_json(folder / "fidelity.json"),
            "curves": training_curves(run.path),
            "plans": example_plans(
                net,
                next(iter(test)),
                run.config.trainer.precision,
                artifact.layers[-1],
                artifact.attention(artifact.layers[-1]).to(device),
            ),
            "manifests": {
                "train": run.manifest,
                "distill": read_json(folder / "manifest.json"),
                "softmax": None if softmax_run is None else softmax_run.manifest,
            },
        }
        metrics["manifests"]["evaluate"] = record
        if tracker is not None:
            log_evaluation(tracker, metrics)
    write_json(out / "metrics.json", metrics)
    print_evaluation(metrics)
    print(f"Record: {out / 'metrics.json'}")
    return out / "metrics.json"


def evaluation_key(
    artifact: Artifact, data: ImageDataModule, device: torch.device, public: dict[str, Any]
) -> str:
    """Equal for evaluations of one map on the same images, kind of device and settings."""
    return short_hash(
        {
            "artifact": artifact.identity["tensors_sha256"],
            "test": data.identity["test_sha256"],
            "device": device_name(device),
            "config": without(public, ("logger", "accelerator", "task")),
        }
    )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def check_enough(config: EvaluateConfig, data: ImageDataModule) -> None:
    """Refuses sizes that the test images cannot fill: a record must hold what it says."""
    for key, wanted in (
        ("fidelity_samples", config.fidelity_samples),
        ("latency.batch_size", config.latency.batch_size),
    ):
        if wanted > int(str(data.identity["test_rows"])):
            raise UserError(
                f"{key}={wanted} is more than the {data.identity['test_rows']} test images used; "
                "choose fewer, or a larger max_test_rows"
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


def find_softmax_twin(run: Run, config: EvaluateConfig) -> Run | None:
    """A finished softmax model of the same data, model, recipe and seed, where one was trained."""
    for other in all_runs(config.paths, run.config.task.name):
        if (
            other.finished
            and other.config.attention["name"] == "softmax"
            and other.manifest["recipe_hash"] == run.manifest["recipe_hash"]
            and other.config.seed == run.config.seed
        ):
            print(f"Softmax model of the same recipe and seed: {other.path}")
            return other
    return None


def measure(
    rows: list[Variant], test: DeviceLoader, precision: str, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """A dict for every variant: predictions, plans, latency, memory."""
    labels = test.images.labels.cpu()
    teacher = rows[0]
    logits = {
        row.key: predict(row, test, precision) for row in progress(rows, "Predicting", len(rows))
    }
    plans = plan_measures(rows, test.first(config.fidelity_samples), precision)
    batch = config.latency.batch_size
    speed = speed_measures(rows, test.first(batch, batch), precision, config.latency)
    return [
        {
            "key": row.key,
            "label": row.label,
            "group": row.group,
            "layers": list(row.replacements),
            **defined(compare(logits[row.key], logits[teacher.key], labels)),
            **defined(plans[row.key]),
            **speed[row.key],
        }
        for row in rows
    ]


def defined(measures: Mapping[str, float | None]) -> dict[str, float | None]:
    """A number that is not finite becomes null: JSON has none, and a record must be writable."""
    return {name: None if x is None else finite(x) for name, x in measures.items()}


def plan_measures(
    rows: list[Variant], images: DeviceLoader, precision: str
) -> dict[str, dict[str, float | None]]:
    """Means over the row's layers and heads, on the activations of the row's own teacher.

    A model trained by itself has plans of its own, and none of the teacher's to be compared with.
    """
    measures: dict[str, dict[str, float | None]] = {}
    for net in {id(row.net): row.net for row in rows}.values():
        mine = [row for row in rows if row.net is net]
        fidelity = plan_fidelity(net, images, precision, {row.key: row.attends() for row in mine})
        for row in mine:
            layers = fidelity[row.key].values()
            means = {
                name: float(torch.stack([layer[name] for layer in layers]).mean())
                for name in ("l1_row_distance", "row_error", "column_error", "entropy")
            }
            largest = max(float(layer["largest_column_error"].max()) for layer in layers)
            measures[row.key] = {**means, "largest_column_error": largest}
            if net is not rows[0].net:
                measures[row.key]["l1_row_distance"] = None
    return measures


def speed_measures(
    rows: list[Variant], images: DeviceLoader, precision: str, config: LatencyConfig
) -> dict[str, dict[str, Any]]:
    """Latency of the row's last attention layer and of its whole model, ratios, peak memory."""
    inputs, _ = next(iter(images))
    assert len(inputs) == config.batch_size
    device = inputs.device
    layer_calls: dict[str, Prepare] = {}
    model_calls: dict[str, Prepare] = {}
    errors = {}
    recorded = {
        id(net): next(iter(layer_inputs(net, [(inputs, inputs)], precision)))
        for net in {id(row.net): row.net for row in rows}.values()
    }
    for row in rows:
        path, attend = list(row.attends().items())[-1]
        layer_in = recorded[id(row.net)][path]
        errors[row.key] = gate_error(attend, layer_in)
        if not passes(errors[row.key], layer_in.v.dtype):
            print(
                f"warning: {row.label} is wrong by {errors[row.key]:.2g} (relative RMS against "
                "float64), so it is not timed"
            )
            continue
        layer_calls[row.key] = layer_call(attend, layer_in)
        model_calls[row.key] = model_call(row, inputs, precision)
    with torch.inference_mode():
        layer_ms = interleaved_latency(layer_calls, device, rounds=config.rounds)
        model_ms = interleaved_latency(model_calls, device, rounds=config.rounds)
        memory = {}
        for key, prepare in model_calls.items():
            with prepare() as call:
                memory[key] = peak_memory(call, device)
    teacher = rows[0].key
    return {
        row.key: {
            "gate_error": finite(errors[row.key]),
            "layer_ms": layer_ms.get(row.key),
            "model_ms": model_ms.get(row.key),
            "layer_speedup": speedup(layer_ms, row.key, teacher),
            "model_speedup": speedup(model_ms, row.key, teacher),
            "peak_memory_mib": memory.get(row.key),
        }
        for row in rows
    }


def layer_call(attend: nn.Module, inputs: LayerInputs) -> Prepare:
    q, k, v, mask = inputs
    return lambda: nullcontext(lambda: attend(q, k, v, key_padding_mask=mask))


def model_call(row: Variant, inputs: Tensor, precision: str) -> Prepare:
    @contextmanager
    def prepare() -> Iterator[Callable[[], Tensor]]:
        with swapped(row.net, row.replacements) as net:

            def call() -> Tensor:
                with autocast(precision, inputs.device):
                    return net(inputs)

            yield call

    return prepare


def speedup(ms: Mapping[str, Mapping[str, float]], key: str, teacher: str) -> float | None:
    """Ratio of medians; None where either was not timed."""
    if key not in ms or teacher not in ms:
        return None
    return ms[teacher]["median"] / ms[key]["median"]
