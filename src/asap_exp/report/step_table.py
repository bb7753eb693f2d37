"""Tables of training steps, on a terminal and in Markdown, made from their records alone."""

from collections.abc import Callable
from pathlib import Path

from rich.markup import escape

from asap_exp.core.config import PathsConfig
from asap_exp.core.console import plain_table, say, show, shown
from asap_exp.core.files import write_text
from asap_exp.core.records.steps import Step, StepRecord
from asap_exp.report.benchmark_records import TAKEN_OVER
from asap_exp.report.benchmark_table import number
from asap_exp.report.markdown import markdown, markdown_paragraph
from asap_exp.report.markdown_table import commit, table_lines
from asap_exp.report.published import own_folder
from asap_exp.report.step_records import gather, load_records


def share(x: float | None) -> str:
    return "" if x is None else f"{100 * x:.1f} %"


def optional(x: float | None, form: str = "{}") -> str:
    return "" if x is None else form.format(number(x))


COLUMNS: dict[str, Callable[[Step], str]] = {
    "ms per step": lambda step: f"{step.step_ms:.2f}",
    "median": lambda step: "" if step.median_ms is None else f"{step.median_ms:.2f}",
    "samples/s": lambda step: f"{step.samples_per_second:,.0f}",
    "tokens/s": lambda step: f"{step.tokens_per_second:,.0f}",
    "GPU busy": lambda step: share(step.gpu_busy),
    "GPU ms": lambda step: optional(step.gpu_ms),
    "kernels": lambda step: optional(step.kernels),
    "utilisation": lambda step: share(step.utilisation),
    "peak memory": lambda step: optional(step.peak_memory_mib, "{} MiB"),
    "warm-up": lambda step: f"{step.warm_up_seconds:.1f} s, {step.warm_up_steps} steps",
    "graphs": lambda step: str(step.graphs),
}
"""Columns after that of the attention."""

MEANINGS = (
    "A step is a whole update as `python -m asap_exp.train` makes it: batch, augmentation, forward "
    "and backward pass, clipping, optimiser, schedule and log. Its time is the mean; the *median* "
    "leaves out single stalls. Tokens include padding. *GPU ms* is "
    "the time per step in which a kernel ran, *GPU busy* its share, both in profiled steps after "
    "the timed ones, whose texts may be longer or shorter: a lower bound, since the profiler makes "
    "steps of a few milliseconds up to twice as long; *utilisation* compares the matrix "
    "products of the model, with softmax attention in any case, with a large matrix product "
    "measured in the same run. *Warm-up* compiles, and records CUDA *graphs*; it is not part of "
    "the other columns."
)


def title(record: StepRecord) -> str:
    return f"{record.task}: training steps on {record.device}"


def caption(record: StepRecord) -> str:
    step = record.manifest.config.get("step", {})
    took_over = record.manifest.took_over
    earlier = ", ".join(row.attention for row in record.rows if took_over(row.measured))
    words = [
        *step.get("overrides", []),
        f"batches of at most {record.batch_size} {record.samples}",
        f"{record.parameters:,} parameters",
        record.precision,
        f"mean of {record.rows[0].steps} steps",
        f"a large matrix product reaches {number(record.product_tflops)} TFLOP/s",
        *([f"{earlier} {TAKEN_OVER}"] if earlier else []),
    ]
    return "; ".join(words)


def print_steps(record: StepRecord) -> None:
    """Print a row per attention."""
    table = plain_table(escape(title(record)), escape(caption(record)))
    table.add_column("attention", no_wrap=True)
    used = [name for name, write in COLUMNS.items() if any(map(write, record.rows))]
    for name in used:
        table.add_column(name, justify="right")
    for row in record.rows:
        table.add_row(escape(row.attention), *(COLUMNS[name](row) for name in used))
    show(table)


def steps_markdown(records: list[StepRecord]) -> str:
    """Return the tables of all records."""
    parts = ["# Speed of training", MEANINGS]
    for record in records:
        manifest = record.manifest
        versions = f"torch {manifest.versions['torch']}, triton {manifest.versions['triton']}"
        lines = [[row.attention, *(of(row) for of in COLUMNS.values())] for row in record.rows]
        parts += [
            f"## {markdown(title(record))}",
            markdown_paragraph(f"{caption(record)}. {versions}, code {commit(manifest)}."),
            "\n".join(table_lines(["attention", *COLUMNS], lines)),
        ]
    return "\n\n".join(parts) + "\n"


def report_steps(paths: PathsConfig, out: Path) -> bool:
    """Write steps.md below `out`; return False without records."""
    folder = own_folder(out) / "records" / "steps"
    gather(paths, folder)
    records = load_records(folder)
    if not records:
        return False
    write_steps(out, records)
    say(f"Training steps: {shown(out / 'steps.md')}")
    return True


def write_steps(out: Path, records: list[StepRecord]) -> None:
    """Write steps.md below `out`."""
    write_text(out / "steps.md", steps_markdown(records))
