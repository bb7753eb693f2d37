"""Words and numbers of a benchmark, and its table on a terminal."""

import math

from rich.markup import escape

from asap_exp.core.console import plain_table, say, show
from asap_exp.core.records.benchmark import BenchmarkRecord, Cell
from asap_exp.report.benchmark_records import notes

MODES = {"forward": "forward", "train": "forward and backward"}


def title(record: BenchmarkRecord) -> str:
    return f"{record.device}: {MODES[record.mode]}, {record.dtype}, {inputs(record)}"


def inputs(record: BenchmarkRecord) -> str:
    source = record.inputs
    if source.kind == "random":
        return "random inputs"
    words = f"inputs of {source.teacher}, {source.layer}"
    if source.resized is None:
        return words
    lengths = ", ".join(map(str, source.resized.to))
    return f"{words}; n = {lengths} of resized images"


def caption(record: BenchmarkRecord) -> str:
    """Describe the conditions of the measurement."""
    row, reached, hardware = record.rows[0], record.ceilings, record.manifest.hardware
    logits = ", ".join(f"{r.largest_logit:.3g}" for r in record.rows)
    threads = hardware.cpu_threads
    cpu = f" ({hardware.cpu}, {threads} thread{'s' * (threads != 1)})"
    parts = [
        f"{record.device}{cpu if record.device == 'CPU' else ''}",
        f"batch x heads x n = {record.tokens:,}",
        f"{row.heads} heads of {row.head_dim}",
        f"largest logit {logits}",
        f"{record.rounds} rounds, fewer of slow methods",
        "CUDA graphs" if record.cuda_graph else "no CUDA graph",
        f"{record.dtype} inputs",
        "TF32 products in plain PyTorch (exact for 16-bit inputs)" if record.tf32 else "",
        "ASAP's dual by plain PyTorch, since no kernel has its gradient"
        if record.mode == "train"
        else "",
        "Triton INTERPRETED, not compiled" if record.triton_interpreted else "",
        f"ceilings {reached.product_tflops:.3g} TFLOP/s and {reached.copy_gb_per_second:.3g} GB/s",
    ]
    return "; ".join(filter(None, parts))


def time_lines(cell: Cell) -> tuple[str, str, str]:
    """Return milliseconds, ratio to flash and whether scaled; if not timed, the cell's status."""
    if cell.ms is None:
        return cell.status, "", ""
    return number(cell.ms.median), multiple(cell.ratio), scaled_words(cell)


def scaled_words(cell: Cell) -> str:
    part = cell.scaled_from
    return "" if part is None else f"scaled from {part} of the batch"


def multiple(x: float | None) -> str:
    return "" if x is None else f"{number(x)}x"


def number(x: float) -> str:
    """Format three significant digits, never as a power of ten."""
    return f"{x:.3g}" if x < 999.5 else f"{x:.0f}"


def slowness(cell: Cell) -> float:
    return math.inf if cell.ms is None else cell.ms.median


def time_text(cell: Cell) -> str:
    ms, *more = filter(None, time_lines(cell))
    return f"{ms} ({', '.join(more)})" if more else ms


def print_benchmark(record: BenchmarkRecord) -> None:
    """Print a row per method, fastest at the greatest length first, and a column per length."""
    table = plain_table(escape(title(record)), escape(caption(record)))
    table.add_column("method", no_wrap=True)
    for row in record.rows:
        table.add_column(f"n = {row.n}\nms (flash)", justify="right")
    by_method: dict[str, list[Cell]] = {name: [] for name in record.columns}
    for _, cell in record.cells:
        by_method[cell.method].append(cell)
    for name, cells in sorted(by_method.items(), key=lambda item: slowness(item[1][-1])):
        style = "bold" if name.startswith("asap") else None
        table.add_row(escape(record.columns[name]), *map(time_text, cells), style=style)
    show(table)
    for note in notes(record):
        say(note)
