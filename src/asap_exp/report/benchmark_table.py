"""How a benchmark's numbers are written, and its table on a terminal."""

from rich.markup import escape
from rich.table import Table

from asap_exp.core.console import console
from asap_exp.core.records.benchmark import BenchmarkRecord, Cell, Length
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


TF32 = (
    "plain PyTorch's products in TF32 (16-bit inputs are exact in it, plans and gradients rounded)"
)
ABSORBED = "heads that absorbed scalings"
"""A column of records that do not name the routes."""
ASAP_TRAINED = "ASAP's dual by plain PyTorch, since no kernel has its gradient"


def caption(record: BenchmarkRecord) -> str:
    """The conditions of the numbers."""
    row, reached, hardware = record.rows[0], record.ceilings, record.manifest.hardware
    logits = ", ".join(f"{r.largest_logit:.3g}" for r in record.rows)
    tf32 = f"; {TF32}" if record.tf32 else ""
    dual = f"; {ASAP_TRAINED}" if record.mode == "train" else ""
    interpreted = "; Triton INTERPRETED, not compiled" if record.triton_interpreted else ""
    threads = hardware.cpu_threads
    cpu = f" ({hardware.cpu}, {threads} thread{'s' * (threads != 1)})"
    return (
        f"{record.device}{cpu if record.device == 'CPU' else ''}; batch x heads x n = "
        f"{record.tokens:,}, {row.heads} heads of {row.head_dim}; largest logit {logits}; "
        f"median of {record.rounds} interleaved rounds in one process, slow methods in fewer, "
        f"{'all as CUDA graphs' if record.cuda_graph else 'no CUDA graph'}; "
        f"{record.dtype} inputs{tf32}{dual}{interpreted}; ceilings measured in the run: "
        f"{reached.product_tflops:.3g} TFLOP/s, {reached.copy_gb_per_second:.3g} GB/s"
    )


def time_lines(cell: Cell) -> tuple[str, str, str]:
    """Milliseconds, ratio to flash, and whether scaled; the word for a cell without a time."""
    if cell.ms is None:
        return cell.status, "", ""
    return number(cell.ms.median), multiple(cell.ratio), scaled_words(cell)


def scaled_words(cell: Cell) -> str:
    part = cell.scaled_from
    return "" if part is None else f"scaled from {part} of the batch"


def multiple(x: float | None) -> str:
    return "" if x is None else f"{number(x)}x"


def domain_words(row: Length) -> str:
    """The share of the fused teacher's heads in this row; `-` if none was counted."""
    share = row.absorbed_heads
    return "-" if share is None else f"{100 * share:.3g}%"


def number(x: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{x:.3g}" if x < 999.5 else f"{x:.0f}"


def print_benchmark(record: BenchmarkRecord) -> None:
    table = Table(
        title=escape(f"{title(record)}: ms, ratio to flash"), caption=escape(caption(record))
    )
    table.add_column("n", justify="right")
    if not record.names_routes:
        table.add_column(ABSORBED)
    for label in record.columns.values():
        table.add_column(escape(label), justify="right")
    for row in record.rows:
        texts = ["\n".join(filter(None, time_lines(cell))) for cell in row.cells]
        domain = [] if record.names_routes else [domain_words(row)]
        table.add_row(str(row.n), *domain, *texts, end_section=True)
    console().print(table)
    for note in notes(record):
        console().print(escape(note), highlight=False)
