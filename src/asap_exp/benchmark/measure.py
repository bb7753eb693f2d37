"""The measurement of a row: all methods on the same inputs, checked, then timed interleaved."""

import functools
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from typing import Any

import torch

from asap_exp.benchmark.accuracy_check import gate_errors, right, wrong_words
from asap_exp.benchmark.calls import Results, results
from asap_exp.benchmark.inputs import Inputs
from asap_exp.benchmark.registry import Method, Operator, Unavailable
from asap_exp.core.console import say
from asap_exp.core.cuda_graph import graphed
from asap_exp.core.records.benchmark import TEACHERS
from asap_exp.core.typed import finite
from asap_exp.ops.routing import recorded
from asap_exp.timing.latency import interleaved_latency
from asap_exp.timing.memory import peak_memory

Cell = dict[str, Any]

BASELINE = "flash"
SLOW_ROUNDS = 5
"""Number of rounds in which a slow method is timed."""

PATIENCE_SECONDS = 1.0
"""Duration of a call beyond which a method is measured on less of the batch."""

Call = Callable[[], Results]
Capture = Callable[[Call], Call]
"""Function from a call to the call that is timed."""
Prepare = Callable[[], AbstractContextManager[Call]]


class TooSlow(Exception):
    """Raised when a call takes longer than `PATIENCE_SECONDS`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.3g} s per call")
        self.seconds = seconds


def measure(
    methods: dict[str, Method], inputs: Inputs, *, rounds: int, cuda_graph: bool
) -> dict[str, Cell]:
    """Return a cell per method: `timed` or `scaled` with `ms`, or another status and a message."""
    captured = capture() if cuda_graph else lambda call: call
    trials, spent = {}, {}
    for name, method in methods.items():
        begin = time.perf_counter()
        for kind, operator in method.operators.items():
            trials[f"{name} {kind}"] = trial(operator, method, inputs, captured)
        spent[name] = time.perf_counter() - begin
    slowest = max(spent, key=spent.__getitem__)
    say(
        f"n = {inputs.q.shape[2]}: compiled and checked {len(methods)} methods in"
        f" {sum(spent.values()):.0f} s, {slowest} in {spent[slowest]:.0f} s; timing them"
    )
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
    """Return time and memory relative to flash attention, and the teachers' times relative to it.

    A ratio is None if either value was not measured.
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
    """Return a capture into graphs with one memory pool: safe, since no two run at once."""
    return functools.partial(graphed, pool=torch.cuda.graph_pool_handle())


def trial(
    operator: Operator, method: Method, inputs: Inputs, captured: Capture
) -> tuple[Cell, Prepare | None]:
    """Return the cell of one operator, and the call to time unless it failed.

    The operator runs on the whole batch; the batch is halved while memory or patience run out.
    """
    batch, why_fewer = len(inputs.q), None
    while True:
        cell: Cell = {
            "status": "timed",
            "message": why_fewer,
            "batch_measured": batch,
            "scaled_from": None,
            "gate_errors": None,
            "first_call_seconds": None,
            "peak_memory_mib": None,
            "ms": None,
            "routes": None,
        }
        part = inputs.first(batch)
        try:
            prepare = first_calls(cell, operator, part, captured)
        except Exception as error:
            why_fewer, halvings = too_much(error)
            cell |= failure(error)
        else:
            return cell, prepare if gated(cell, prepare, method, part) else None
        free_memory(inputs.q.device)
        if why_fewer is None or batch == 1:
            return cell, None
        batch = max(1, batch >> halvings)


def first_calls(cell: Cell, operator: Operator, inputs: Inputs, captured: Capture) -> Prepare:
    """Write the first call's time and routes and the second call's memory into the cell.

    Returns the call to time.
    """
    device = inputs.q.device

    def call() -> Results:
        return results(operator.attend, inputs)

    with operator.context():
        with recorded() as taken:
            cell["first_call_seconds"] = first_call(call, device)
        cell["routes"] = [*dict.fromkeys(f"{operator}: {route}" for operator, route in taken)]
        begin = time.perf_counter()
        # On a CPU, the count of memory misses what compiled code allocates.
        if device.type == "cuda" or not operator.compiled:
            cell["peak_memory_mib"] = peak_memory(call, device)
        duration = time.perf_counter() - begin
        if duration > PATIENCE_SECONDS and len(inputs.q) > 1:
            raise TooSlow(duration)
        return within(operator, captured(call))


def gated(cell: Cell, prepare: Prepare, method: Method, inputs: Inputs) -> bool:
    """Return whether the timed call is accurate; if not, the cell says why.

    The float64 reference needs the same memory for any batch, so running out of it is an error.
    """
    try:
        with prepare() as call:
            errors = gate_errors(call(), method.reference, inputs)
    except Exception as error:
        cell |= failure(error)
        return False
    cell["gate_errors"] = {name: finite(error) for name, error in errors.items()}
    if right(errors, inputs.v.dtype, tf32=method.tf32):
        return True
    cell |= {"status": "wrong", "message": wrong_words(errors)}
    return False


def scaled(cell: Cell, batch: int) -> Cell:
    """Return a timed cell scaled to `batch` samples, and marked so if fewer were measured."""
    part = Fraction(cell["batch_measured"], batch)
    if part == 1:
        return cell
    factor = float(1 / part)
    memory = cell["peak_memory_mib"]
    return cell | {
        "status": "scaled",
        "scaled_from": str(part),
        "message": f"measured on {cell['batch_measured']} of {batch} samples and scaled up to the "
        f"same work, since more {cell['message']}",
        "ms": {part: factor * ms for part, ms in cell["ms"].items()},
        "peak_memory_mib": None if memory is None else factor * memory,
    }


def first_call(call: Call, device: torch.device) -> float:
    """Return the seconds of a first call, with compilation and lazy initialisation."""
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def within(operator: Operator, call: Call) -> Prepare:
    @contextmanager
    def prepare() -> Iterator[Call]:
        with operator.context():
            yield call

    return prepare


def failure(error: Exception) -> Cell:
    """Return the cell of a method that was not timed: `unavailable` with a reason, or `error`."""
    refused = isinstance(error, RuntimeError) and str(error).startswith("backend='triton' cannot")
    known = isinstance(error, Unavailable) or refused
    line = next(iter(str(error).splitlines()), "")
    return {
        "status": "unavailable" if known else "error",
        "message": line if known else f"{type(error).__name__}: {line}",
        "ms": None,
    }


def too_much(error: BaseException | None) -> tuple[str | None, int]:
    """Return why the batch is too large (None if that is not the cause), and how often to halve it.

    The capture of a CUDA graph raises an exception of its own; the original exception is its cause.
    """
    if isinstance(error, TooSlow):
        return "take too long", math.ceil(math.log2(error.seconds / PATIENCE_SECONDS))
    if isinstance(error, torch.OutOfMemoryError):
        return "do not fit in memory", 1
    return (None, 0) if error is None else too_much(error.__cause__ or error.__context__)


def free_memory(device: torch.device) -> None:
    """Free unused memory, so that a method does not suffer if the previous one ran out of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fastest(cells: dict[str, Cell]) -> Cell:
    """Return the cell and name of the fastest operator, or of the first if none was timed."""
    timed = {kind: cell for kind, cell in cells.items() if cell["ms"] is not None}
    chosen = min(timed, key=lambda kind: timed[kind]["ms"]["median"], default=next(iter(cells)))
    others = {
        kind: {"status": cell["status"], "message": cell["message"], "ms": cell["ms"]}
        for kind, cell in cells.items()
        if kind != chosen
    }
    return {"operator": chosen, **cells[chosen], "other_operators": others}
