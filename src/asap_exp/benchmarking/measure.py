"""One row: every method on the same inputs, checked, then timed interleaved in this process."""

import functools
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch

from asap_exp.benchmarking.calls import Results, results
from asap_exp.benchmarking.gate import gate_errors, right, wrong_words
from asap_exp.benchmarking.inputs import Inputs
from asap_exp.benchmarking.registry import Method, Operator, Unavailable
from asap_exp.distillation.report import finite
from asap_exp.evaluation.latency import Prepare, interleaved_latency
from asap_exp.evaluation.memory import peak_memory
from asap_exp.graphs import graphed

Cell = dict[str, Any]

BASELINE = "flash"
TEACHER_UPDATES = 20
TEACHERS = tuple(f"sinkhorn_{kind}{TEACHER_UPDATES}" for kind in ("", "eager_", "compiled_"))
"""Fused, plain and compiled: what ASAP is to be faster than."""
SLOW_ROUNDS = 5
"""In so many of the rounds a slow method is timed."""

Capture = Callable[[Callable[[], Results]], Callable[[], Results]]
"""From a call to what is timed."""


def measure(
    methods: dict[str, Method], inputs: Inputs, *, rounds: int, cuda_graph: bool
) -> dict[str, Cell]:
    """A cell for every method: `timed` or `scaled` with `ms`, or another word and a message."""
    captured = capture() if cuda_graph else lambda call: call
    trials = {
        f"{name} {kind}": trial(operator, method, inputs, captured)
        for name, method in methods.items()
        for kind, operator in method.operators.items()
    }
    cells = {key: cell for key, (cell, _) in trials.items()}
    timings = interleaved_latency(
        {key: prepare for key, (_, prepare) in trials.items() if prepare is not None},
        inputs.q.device,
        rounds=rounds,
        slow_rounds=SLOW_ROUNDS,
        failed=lambda key, error: cells[key].update(failure(error)),
    )
    for key, timing in timings.items():
        cells[key] = scaled(cells[key] | {"ms": timing}, len(inputs.q))
    best = {
        name: fastest({kind: cells[f"{name} {kind}"] for kind in method.operators})
        for name, method in methods.items()
    }
    return {name: {**cell, **compared(cell, best)} for name, cell in best.items()}


def compared(cell: Cell, cells: dict[str, Cell]) -> Cell:
    """Time and memory as multiples of flash attention's; the teachers' times as multiples of its.

    None where either was not measured.
    """

    def times(cell: Cell | None, other: Cell | None) -> float | None:
        ms, other_ms = (None if c is None else c["ms"] for c in (cell, other))
        return None if ms is None or other_ms is None else ms["median"] / other_ms["median"]

    def memory(cell: Cell | None) -> float | None:
        return None if cell is None or cell["ms"] is None else cell["peak_memory_mib"]

    flash = cells.get(BASELINE)
    mine, baseline = memory(cell), memory(flash)
    return {
        "ratio": times(cell, flash),
        "memory_ratio": mine / baseline if mine is not None and baseline else None,
        "faster_than": {name: times(cells[name], cell) for name in TEACHERS if name in cells},
    }


def capture() -> Capture:
    """Graphs that share one pool of memory: they never run at once, nor read another's result."""
    return functools.partial(graphed, pool=torch.cuda.graph_pool_handle())


def trial(
    operator: Operator, method: Method, inputs: Inputs, captured: Capture
) -> tuple[Cell, Prepare | None]:
    """The cell of one operator, and what to time if it may be timed.

    On the whole batch or, as long as memory does not suffice, on half as many samples.
    """
    batch = len(inputs.q)
    while True:
        cell: Cell = {
            "status": "timed",
            "message": None,
            "batch_measured": batch,
            "scaled_from": None,
            "gate_errors": None,
            "first_call_seconds": None,
            "peak_memory_mib": None,
            "ms": None,
        }
        try:
            return cell, attempt(cell, operator, method, inputs.first(batch), captured)
        except Exception as error:
            again = out_of_memory(error) and batch > 1
            cell |= failure(error)
        free_memory(inputs.q.device)
        if not again:
            return cell, None
        batch //= 2


def attempt(
    cell: Cell, operator: Operator, method: Method, inputs: Inputs, captured: Capture
) -> Prepare | None:
    """Writes first call, memory and gate into the cell; what to time, None if it is wrong."""
    device = inputs.q.device

    def call() -> Results:
        return results(operator.attend, inputs)

    with operator.context():
        cell["first_call_seconds"] = first_call(call, device)
        # Memory that compiled code takes on a CPU passes by what counts it there.
        if device.type == "cuda" or not operator.compiled:
            cell["peak_memory_mib"] = peak_memory(call, device)
        timed = captured(call)
        errors = gate_errors(timed(), method.reference, inputs)
    cell["gate_errors"] = {name: finite(error) for name, error in errors.items()}
    if right(errors, inputs.v.dtype):
        return within(operator, timed)
    cell |= {"status": "wrong", "message": wrong_words(errors)}
    return None


def scaled(cell: Cell, batch: int) -> Cell:
    """A timed cell with the time and memory of `batch` samples; marked where they were fewer."""
    part = Fraction(cell["batch_measured"], batch)
    if part == 1:
        return cell
    factor = float(1 / part)
    memory = cell["peak_memory_mib"]
    return cell | {
        "status": "scaled",
        "scaled_from": str(part),
        "message": f"out of memory beyond {cell['batch_measured']} of {batch} samples; "
        "time and memory are multiplied to the same work",
        "ms": {part: factor * ms for part, ms in cell["ms"].items()},
        "peak_memory_mib": None if memory is None else factor * memory,
    }


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


def out_of_memory(error: BaseException | None) -> bool:
    """Whether it, or what it came from (a capture fails in its own words), lacked memory."""
    if error is None or isinstance(error, torch.OutOfMemoryError):
        return error is not None
    return out_of_memory(error.__cause__ or error.__context__)


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
