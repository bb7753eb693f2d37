"""Measurements of an evaluation, on given networks and loaders; they need no run directory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from asap_exp.attention import swapped
from asap_exp.calibration.artifact import Artifact
from asap_exp.calibration.capture import layer_inputs
from asap_exp.calibration.data import is_stand_in
from asap_exp.calibration.drift import column_errors, drift_ratios
from asap_exp.calibration.fidelity import plan_fidelity
from asap_exp.core.agreement import wait_for_all
from asap_exp.core.config import LatencyConfig
from asap_exp.core.console import progress, warn
from asap_exp.core.devices import cpu_threads
from asap_exp.core.ranks import ALONE, Ranks
from asap_exp.core.typed import finite
from asap_exp.data.loader import BatchLoader
from asap_exp.evaluate.accuracy import compare_predictions
from asap_exp.evaluate.example_plan import example_plans
from asap_exp.evaluate.right import Predicted, TestedSamples
from asap_exp.evaluate.variants import Variant
from asap_exp.timing.accuracy_check import gate_error, passes
from asap_exp.timing.calls import as_graphs, layer_call, model_call
from asap_exp.timing.latency import Prepare, interleaved_latency
from asap_exp.timing.memory import peak_memory

Part = dict[str, Any]
"""What one kind of measurement found, by key of the variant, as JSON."""
Keep = Callable[[str, Callable[[], Part]], Part]
"""Returns the part of a name: one that is kept, or what the function given measures."""


def measured_now(_: str, part: Callable[[], Part]) -> Part:
    """Measure a part, whatever may be kept."""
    return part()


@dataclass(frozen=True)
class Measured:
    """Measurements of a compiled map, in the form of its record."""

    rows: list[dict[str, Any]]
    """Rows, one per variant; the keys are the fields of `asap_exp.core.records.row.Row`."""
    drift: dict[str, float] | None
    """Column error on test samples over that at calibration, by layer path; None without a fit."""
    plans: dict[str, Any]
    """Plans of teacher, map and softmax for one sample, in the map's last layer."""
    tested: TestedSamples | None = None
    """Which samples each variant predicts right; None if targets are tokens."""
    behaviour: dict[str, Any] | None = None
    """What the plans of whole models do, a `Behaviour` as JSON; None if it was not asked for."""
    cuda_graph: bool = False
    """Whether calls were timed as CUDA graphs, without the host's time."""


def measure_map(
    net: nn.Module,
    artifact: Artifact,
    variants: Sequence[Variant],
    test: BatchLoader,
    *,
    latency: LatencyConfig,
    precision: str = "32-true",
    fidelity_samples: int = 256,
    validation: BatchLoader | None = None,
    ranks: Ranks = ALONE,
    latency_threads: int | None = None,
    of_tokens: bool = False,
    keep: Keep = measured_now,
) -> Measured:
    """Measure the variants of a teacher `net` that was compiled to `artifact`.

    Needs no run directory, and writes nothing:

        compiled = asap_exp.compile(net, batches)
        artifact = compiled.asap_artifact
        rows = variants(net, artifact, [Truncation(2)])
        test = TensorLoader(inputs, labels, batch_size=64)
        latency = LatencyConfig(batch_size=64, rounds=10)
        found = measure_map(net, artifact, rows, test, latency=latency)

    The first of `variants` is the teacher, which the others are compared with. `test` yields inputs
    and targets on the device of `net`, at least `latency.batch_size` samples. Predictions are those
    on all of `test`, in `precision`: 32-true, bf16-mixed or 16-mixed. Plans are compared on its
    first `fidelity_samples` samples, and latencies (ms) are of its first `latency.batch_size`, on a
    GPU as CUDA graphs unless `latency.cuda_graph` is False, or None and one of them cannot be
    recorded. With
    `validation` (of a masked language model), the perplexity on it and on `test` is measured too.
    `of_tokens` says that a sample has several targets. Several `ranks` share the samples; the first
    alone measures latency and memory, on a CPU with `latency_threads`, while the others wait. Each
    kind of measurement is a part of `keep`, which has the same ones on all ranks.
    """

    def compared_on(loader: BatchLoader, what: str, *, samples: bool) -> Part:
        return compared(variants, loader.shared(ranks), precision, what, samples=samples)

    on_test = keep("predictions", lambda: compared_on(test, "Predicting", samples=not of_tokens))
    predictions = on_test["means"]
    perplexities: dict[str, dict[str, float]] = {row.key: {} for row in variants}
    if validation is not None:
        on_validation = keep(
            "validation", lambda: compared_on(validation, "Predicting, validation", samples=False)
        )
        perplexities = {
            row.key: {
                "perplexity": perplexity(predictions[row.key]["loss"]),
                "val_perplexity": perplexity(on_validation["means"][row.key]["loss"]),
            }
            for row in variants
        }
    few = test.first(fidelity_samples).shared(ranks)
    plans = keep("plans", lambda: plan_measures(variants, few, precision))
    speed: Part = {"rows": {row.key: {} for row in variants}, "cuda_graph": False}
    if ranks.rank == 0:
        speed = keep("speed", lambda: timed(variants, test, precision, latency, latency_threads))
    wait_for_all()
    rows = [
        {
            "key": row.key,
            "label": row.label,
            "group": row.group,
            "layers": list(row.replacements),
            **predictions[row.key],
            **defined(perplexities[row.key]),
            **plans[row.key],
            **speed["rows"][row.key],
        }
        for row in variants
    ]
    last, device = artifact.layers[-1], next(net.parameters()).device
    fitted = artifact.about.column_error is not None  # else there is no drift from data
    return Measured(
        rows,
        drift(net, artifact, few, precision) if fitted else None,
        example_plans(net, test.example(), precision, last, artifact.attention(last).to(device)),
        None if of_tokens else TestedSamples.of(on_test["right"]),
        cuda_graph=speed["cuda_graph"],
    )


def compared(
    variants: Sequence[Variant], loader: BatchLoader, precision: str, what: str, *, samples: bool
) -> Part:
    """Return mean measures of every variant's predictions and, of `samples`, which are right."""
    seen = Predicted()

    def note(number: int, targets: Tensor, right: Mapping[str, Tensor]) -> None:
        if samples:
            seen.add(loader.samples_of(number), targets, right)

    batches = progress(loader, what, len(loader))
    means = compare_predictions(variants, batches, precision, partial(is_stand_in, loader), note)
    return {
        "means": {key: defined(each) for key, each in means.items()},
        "right": seen.of_all_ranks().stored() if samples else None,
    }


def timed(
    variants: Sequence[Variant],
    test: BatchLoader,
    precision: str,
    latency: LatencyConfig,
    threads: int | None,
) -> Part:
    samples = test.first(latency.batch_size, latency.batch_size)
    with cpu_threads(threads):
        return speed_measures(variants, samples, precision, latency)


def drift(
    net: nn.Module, artifact: Artifact, samples: BatchLoader, precision: str
) -> dict[str, float]:
    """Return each compiled layer's column error on test samples over that at calibration."""
    device = next(net.parameters()).device
    attends = {path: artifact.attention(path).to(device) for path in artifact.layers}
    with swapped(net, attends):
        now = column_errors(net, samples, artifact.layers, precision)
    return drift_ratios(now, artifact.identity["column_error"])


def perplexity(loss: float | None) -> float:
    """Return exp(loss), infinite if it overflows or the loss is not defined."""
    return math.exp(loss) if loss is not None and loss < 700 else math.inf


def defined(measures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Replace numbers that are not finite by None, since JSON has none."""
    return {name: None if x is None else finite(x) for name, x in measures.items()}


def plan_measures(rows: Sequence[Variant], samples: BatchLoader, precision: str) -> Part:
    """Measure the plans of every row, by its key, on the activations of the row's own teacher.

    Returns means over a row's layers and heads by name, and as `layer_columns` the column error of
    each layer. A model trained by itself has its own plans, with no plan of the teacher to compare
    them with.
    """
    measures: Part = {}
    for net in {id(row.net): row.net for row in rows}.values():
        mine = [row for row in rows if row.net is net]
        fidelity = plan_fidelity(net, samples, precision, {row.key: row.attends() for row in mine})
        for row in mine:
            layers = fidelity[row.key].values()
            means: dict[str, float | None] = {
                name: float(torch.stack([layer[name] for layer in layers]).mean())
                for name in ("l1_row_distance", "row_error", "column_error", "entropy")
            }
            columns = {path: layer_columns(layer) for path, layer in fidelity[row.key].items()}
            means["largest_column_error"] = max(each["largest"] for each in columns.values())
            if net is not rows[0].net:
                means["l1_row_distance"] = None
            layers_of = [{"layer": path, **defined(each)} for path, each in columns.items()]
            measures[row.key] = {**defined(means), "layer_columns": layers_of}
    return measures


def layer_columns(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean over heads of a layer's column error, and the largest of a column."""
    return {
        "mean": float(measured["column_error"].mean()),
        "largest": float(measured["largest_column_error"].max()),
    }


def speed_measures(
    rows: Sequence[Variant], samples: BatchLoader, precision: str, config: LatencyConfig
) -> Part:
    """Measure latency of each row's last attention layer and whole model, ratios, peak memory."""
    inputs, targets = next(iter(samples))
    assert len(inputs) == config.batch_size
    device = inputs.device
    graphs = config.on("latency", device.type).cuda_graph
    calls: dict[tuple[str, str], Prepare] = {}
    errors = {}
    given = {
        id(net): next(iter(layer_inputs(net, [(inputs, targets)], precision)))
        for net in {id(row.net): row.net for row in rows}.values()
    }
    for row in rows:
        path, attend = list(row.attends().items())[-1]
        layer_in = given[id(row.net)][path][-1]
        errors[row.key] = gate_error(attend, layer_in)
        if not passes(errors[row.key], layer_in.v.dtype):
            warn(
                f"{row.label} is wrong by {errors[row.key]:.2g} (relative RMS against "
                "float64), so it is not timed"
            )
            continue
        calls["layer", row.key] = layer_call(attend, layer_in)
        calls["model", row.key] = model_call(row.net, row.replacements, inputs, precision)
    with torch.inference_mode():
        asked_by = "latency.cuda_graph" if config.cuda_graph else None
        timed, as_graph = as_graphs(calls, asked_by=asked_by) if graphs else (calls, False)

        def latencies(kind: str) -> dict[str, dict[str, float]]:
            mine = {key: call for (of, key), call in timed.items() if of == kind}
            return interleaved_latency(mine, device, rounds=config.rounds)

        layer_ms, model_ms = latencies("layer"), latencies("model")
        memory = {}
        for key in model_ms:
            with calls["model", key]() as call:
                memory[key] = peak_memory(call, device)
    teacher = rows[0].key
    found = {
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
    return {"rows": found, "cuda_graph": as_graph}


def speedup(ms: Mapping[str, Mapping[str, float]], key: str, teacher: str) -> float | None:
    """Return the ratio of medians; None if either was not timed."""
    if key not in ms or teacher not in ms:
        return None
    return ms[teacher]["median"] / ms[key]["median"]
