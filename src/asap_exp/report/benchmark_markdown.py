"""`benchmark.md` and `benchmark.csv`, made from records alone."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from asap_exp.core.escaping import markdown, markdown_paragraph
from asap_exp.core.records.benchmark import (
    RESULTS,
    TEACHER_UPDATES,
    TEACHERS,
    BenchmarkRecord,
    Cell,
    Length,
)
from asap_exp.report.benchmark_records import notes
from asap_exp.report.benchmark_table import (
    caption,
    multiple,
    number,
    scaled_words,
    time_lines,
    time_text,
    title,
)
from asap_exp.report.csv_table import csv_text, quartiles
from asap_exp.report.markdown_table import commit, folded, table_lines

NOTICE = (
    "<!-- Generated from records/benchmark by `make benchmark`, `make report` or `make publish`: "
    "do not edit. -->"
)
EXPLANATION = (
    "Milliseconds, the median of interleaved rounds in one process, and the ratio to flash softmax "
    "in that process. Quartiles, first calls and counts are in benchmark.csv."
)
MEANINGS = (
    "`scaled`: measured on a part of the batch, because the method needs too much memory or time, "
    "and multiplied to the same work; hollow in the figure.",
    "`wrong`: failed the comparison with float64, which each method takes before it is timed, on "
    "the first and the last sample (where n is large, on one head of each). `error` and "
    "`unavailable` cells have their reason below the tables.",
    "Recorded inputs come from a teacher. ASAP's maps are fitted to some of them by ridge, and a "
    "dual that a method takes is the teacher's. On random inputs both are random.",
    "The floor is the larger of the counted matrix products over the measured TFLOP/s and of the "
    "operator's inputs and outputs over the measured GB/s, for a method that stores nothing of "
    "size n x n and recomputes its logits in each pass. A method that keeps them or its keys on "
    "chip, possible up to some hundreds of tokens, can be below it. On a CPU the ceilings are "
    "rough.",
)


def floor_cell(cell: Cell) -> str:
    """Write the floor, and the measured time as a multiple of it."""
    if cell.floor_ms is None:
        return ""
    times = "" if cell.ms is None else f" ({number(cell.ms.median / cell.floor_ms)}x)"
    return f"{number(cell.floor_ms)}{times}"


def exponential_rate(record: BenchmarkRecord) -> str:
    """Return the measured rate of exponentials; older records have a counted one."""
    measured = record.ceilings.exponentials_per_second
    if measured is None:
        return "16 per clock and multiprocessor (counted, at the nominal clock)"
    return f"the measured {measured / 1e12:.3g} tera per second"


def exponentials_cell(cell: Cell) -> str:
    return "" if cell.exponentials_ms is None else number(cell.exponentials_ms)


def memory_cell(cell: Cell) -> str:
    memory = cell.peak_memory_mib
    if memory is None or cell.ms is None:
        return ""
    more = [*filter(None, (multiple(cell.memory_ratio), scaled_words(cell)))]
    return f"{memory:.1f} ({', '.join(more)})" if more else f"{memory:.1f}"


def factor_cell(cell: Cell) -> str:
    """Write the factor by which ASAP is faster than each teacher; empty for other methods."""
    if not cell.method.startswith("asap"):
        return ""
    factors = [multiple(cell.faster_than.get(name)) or "-" for name in TEACHERS]
    return " / ".join(factors) if any(factor != "-" for factor in factors) else ""


def routes_cell(cell: Cell) -> str:
    """Write the kernels of the first call; see `asap_exp.ops.routes`."""
    return ", ".join(cell.routes or [])


TABLES: dict[str, Callable[[Cell], str]] = {
    "Time, ms (ratio to flash)": time_text,
    f"Speed-up of ASAP over Sinkhorn, T = {TEACHER_UPDATES}: same backend / eager / "
    "compiled": factor_cell,
    "Counted floor, ms (and the measured time as a multiple of it)": floor_cell,
    "Exponentials alone, ms, at {rate}": exponentials_cell,
    "Peak memory beyond the inputs, MiB (ratio to flash)": memory_cell,
    "Kernels, as operator: route": routes_cell,
}
"""Tables of a record, by heading. The first one is shown, the others are folded."""


def benchmark_markdown(records: list[BenchmarkRecord], form: str = "png") -> str:
    """Return all tables, and figures of this format, which are files beside them."""
    meanings = folded("How to read the tables", [f"* {words}" for words in MEANINGS])
    parts = ["# Speed of the attention operators", NOTICE, EXPLANATION, "\n".join(meanings)]
    parts += [section(record, form) for record in records]
    return "\n\n".join(parts) + "\n"


SUMMARY = {
    "flash softmax": "flash",
    "attention pass with a key bias": "attention_pass",
    "closure": "closure",
    "ASAP, 8 slices + query features": "asap_8",
    "and adaptive features": "asap_8_adaptive",
    "T = 3, fused": "sinkhorn_3",
    "T = 20, fused": "sinkhorn_20",
    "T = 20, eager": "sinkhorn_eager_20",
}
"""Columns of the table in docs/results.md, with their methods."""


def summary_lines(records: list[BenchmarkRecord]) -> list[str]:
    """Return ratios of forward passes in bfloat16 on a GPU, at all lengths and kinds of input."""
    lines = []
    for record in records:
        on_gpu = record.mode == "forward" and record.manifest.hardware.gpu
        if on_gpu and record.dtype == "bfloat16":
            for row in record.rows:
                found = {cell.method: ratio_cell(cell) for cell in row.cells}
                times = [found.get(method, "") for method in SUMMARY.values()]
                lines.append([f"n = {row.n}, {record.inputs.kind} inputs", *times])
    return table_lines(["time over flash softmax's", *SUMMARY], lines)


def ratio_cell(cell: Cell) -> str:
    """Write the ratio to flash softmax, which itself is 1x; milliseconds if there is no ratio."""
    ms, *more = filter(None, time_lines(cell))
    return ", ".join(more) or ms


def section(record: BenchmarkRecord, form: str) -> str:
    manifest, name = record.manifest, markdown(title(record))
    versions = manifest.versions
    code = f"torch {versions['torch']}, triton {versions['triton']}, code {commit(manifest)}"
    first, *others = [
        (heading.format(rate=exponential_rate(record)), cell_lines(record, write))
        for heading, write in TABLES.items()
        if any(write(cell) for _, cell in record.cells)
    ]
    parts = [
        f"## {name}",
        markdown_paragraph(f"{caption(record)}. {code}."),
        "\n".join(first[1]),
        *("\n".join(folded(*table)) for table in others),
        "\n".join(f"* {markdown_paragraph(note)}" for note in notes(record)),
        f"![{name}]({quote(f'figures/benchmark_{record.name}.{form}')})",
    ]
    return "\n\n".join(part for part in parts if part)


def cell_lines(record: BenchmarkRecord, write: Callable[[Cell], str]) -> list[str]:
    """Return a table of one number, with the methods that have it."""
    said = {cell.method for _, cell in record.cells if write(cell)}
    labels = [label for name, label in record.columns.items() if name in said]
    lines = [
        [str(row.n), *(write(cell) for cell in row.cells if cell.method in said)]
        for row in record.rows
    ]
    return table_lines(["n", *labels], lines, text=0)


def benchmark_csv(records: list[BenchmarkRecord]) -> str:
    """Return every cell of every record, unrounded."""
    return csv_text([flat_cell(record, *pair) for record in records for pair in record.cells])


def flat_cell(record: BenchmarkRecord, row: Length, cell: Cell) -> dict[str, Any]:
    errors, work = cell.gate_errors, cell.work
    return {
        **{key: getattr(record, key) for key in ("name", "device", "mode", "dtype", "cuda_graph")},
        "inputs": record.inputs.kind,
        **{key: getattr(row, key) for key in ("n", "batch", "heads", "head_dim", "largest_logit")},
        "absorbed_heads": row.absorbed_heads,
        **{key: getattr(cell, key) for key in ("method", "label", "backend", "operator", "status")},
        **quartiles("ms", cell.ms),
        **{key: getattr(cell, key) for key in ("batch_measured", "scaled_from")},
        "ratio_to_flash": cell.ratio,
        **{f"faster_than_{name}": cell.faster_than.get(name) for name in TEACHERS},
        "floor_ms": cell.floor_ms,
        "exponentials_ms": cell.exponentials_ms,
        **{part: work and getattr(work, part) for part in ("flops", "exponentials", "bytes")},
        "first_call_seconds": cell.first_call_seconds,
        "peak_memory_mib": cell.peak_memory_mib,
        "memory_ratio_to_flash": cell.memory_ratio,
        **{f"error_{part}": errors and getattr(errors, part) for part in RESULTS},
        "message": cell.message,
        **({} if cell.routes is None else {"routes": routes_cell(cell)}),
    }
