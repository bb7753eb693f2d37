"""One row: every method on the same inputs, checked, then timed interleaved in this process."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from asap_exp.benchmarking.calls import RESULTS, Results, results
from asap_exp.benchmarking.inputs import Inputs
from asap_exp.benchmarking.registry import Attend, Method, Operator, Unavailable
from asap_exp.distillation.report import finite
from asap_exp.evaluation.gate import passes, relative_rms
from asap_exp.evaluation.latency import Prepare, interleaved_latency
from asap_exp.evaluation.memory import peak_memory
from asap_exp.graphs import graphed

Cell = dict[str, Any]

GRADIENT_FACTOR = 2
"""How much larger than the output's the relative error of a gradient may be."""
BASELINE = "flash"


def measure(
    methods: dict[str, Method], inputs: Inputs, *, rounds: int, cuda_graph: bool
) -> dict[str, Cell]:
    """A cell for every method; those whose status is `timed` have `ms`, the others a message."""
    trials = {
        f"{name} {kind}": attempt(operator, method, inputs, cuda_graph=cuda_graph)
        for name, method in methods.items()
        for kind, operator in method.operators.items()
    }
    cells = {key: cell for key, (cell, _) in trials.items()}
    timings = interleaved_latency(
        {key: prepare for key, (_, prepare) in trials.items() if prepare is not None},
        inputs.q.device,
        rounds=rounds,
        failed=lambda key, error: cells[key].update(failure(error)),
    )
    for key, timing in timings.items():
        cells[key]["ms"] = timing
    best = {
        name: fastest({kind: cells[f"{name} {kind}"] for kind in method.operators})
        for name, method in methods.items()
    }
    baseline = best[BASELINE]["ms"] if BASELINE in best else None
    return {name: {**cell, "ratio": ratio(cell["ms"], baseline)} for name, cell in best.items()}


def attempt(
    operator: Operator, method: Method, inputs: Inputs, *, cuda_graph: bool
) -> tuple[Cell, Prepare | None]:
    """First call, memory and gate of one operator; with it what to time, if it may be timed."""
    cell: Cell = {
        "status": "timed",
        "message": None,
        "gate_errors": None,
        "first_call_seconds": None,
        "peak_memory_mib": None,
        "ms": None,
    }
    device = inputs.q.device

    def call() -> Results:
        return results(operator.attend, inputs)

    try:
        with operator.context():
            cell["first_call_seconds"] = first_call(call, device)
            # Memory that compiled code takes on a CPU passes by what counts it there.
            if device.type == "cuda" or not operator.compiled:
                cell["peak_memory_mib"] = peak_memory(call, device)
            timed = graphed(call) if cuda_graph else call
            errors = gate_errors(timed(), method.reference, inputs)
    except Exception as error:
        cell |= failure(error)
    else:
        cell["gate_errors"] = {name: finite(error) for name, error in errors.items()}
        if right(errors, inputs.v.dtype):
            return cell, within(operator, timed)
        cell |= {"status": "wrong", "message": wrong_words(errors)}
    free_memory(device)
    return cell, None


def first_call(call: Callable[[], Results], device: torch.device) -> float:
    """Seconds, compilation and lazy initialisation included."""
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def within(operator: Operator, call: Callable[[], Results]) -> Prepare:
    @contextmanager
    def prepare() -> Iterator[Callable[[], Results]]:
        with operator.context():
            yield call

    return prepare


def gate_errors(found: Results, reference: Attend, inputs: Inputs) -> dict[str, float]:
    """Relative RMS error of each result against float64, the worse of first and last sample."""
    errors: dict[str, list[float]] = {}
    last = len(inputs.q) - 1
    for index in sorted({0, last}):
        exact = results(reference, inputs.sample(index))
        for name, x, y in zip(RESULTS, found, exact, strict=False):
            errors.setdefault(name, []).append(relative_error(x[index : index + 1].double(), y))
    # Unlike Python's, this maximum is NaN where either is.
    return {name: float(torch.tensor(both).max()) for name, both in errors.items()}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Relative RMS, or the norm of what should be zero everywhere."""
    return relative_rms(found, exact) if exact.any() else found.norm().item()


def right(errors: dict[str, float], dtype: torch.dtype) -> bool:
    return all(
        passes(error if name == "out" else error / GRADIENT_FACTOR, dtype)
        for name, error in errors.items()
    )


def wrong_words(errors: dict[str, float]) -> str:
    words = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
    return f"relative RMS error against float64: {words}"


def failure(error: Exception) -> Cell:
    """The cell of what could not be timed: `unavailable` with its reason, or `error`."""
    refused = isinstance(error, RuntimeError) and str(error).startswith("backend='triton' cannot")
    known = isinstance(error, Unavailable) or refused
    line = next(iter(str(error).splitlines()), "")
    return {
        "status": "unavailable" if known else "error",
        "message": line if known else f"{type(error).__name__}: {line}",
        "ms": None,
    }


def free_memory(device: torch.device) -> None:
    """After a method that ran out of it, say: the next one starts with all there is."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fastest(cells: dict[str, Cell]) -> Cell:
    """The cell of the fastest operator, or of the first where none was timed, named."""
    timed = {kind: cell for kind, cell in cells.items() if cell["ms"] is not None}
    chosen = min(timed, key=lambda kind: timed[kind]["ms"]["median"], default=next(iter(cells)))
    others = {
        kind: {"status": cell["status"], "message": cell["message"], "ms": cell["ms"]}
        for kind, cell in cells.items()
        if kind != chosen
    }
    return {"operator": chosen, **cells[chosen], "other_operators": others}


def ratio(ms: dict[str, float] | None, baseline: dict[str, float] | None) -> float | None:
    """Of medians; None where either was not timed."""
    return None if ms is None or baseline is None else ms["median"] / baseline["median"]
