"""The evaluation table, in one place: which columns, how each number is written."""

from rich.markup import escape
from rich.table import Table

from asap_exp.core.console import console
from asap_exp.core.records.columns import Column, shown
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.row import COLUMNS, Row
from asap_exp.core.records.words import attention_words, corruption_words


def columns(record: EvaluationRecord) -> list[Column]:
    return [column for column in shown(COLUMNS, record.objective) if column.tables]


def cells(row: Row, record: EvaluationRecord) -> list[str]:
    return [row.label, *(c.value(getattr(row, c.key)) for c in columns(record))]


def titles(record: EvaluationRecord) -> list[str | int]:
    return ["method", *(column.short for column in columns(record))]


def caption(record: EvaluationRecord) -> str:
    """What the numbers were measured on; a subset is called a subset."""
    rows, of, samples = record.test.rows, record.test.of, record.samples
    split = " of the pooled and newly dealt data" if record.trained_on.split == "pooled" else ""
    whole = record.test.whole
    test = f"all {of} test {samples}" if whole else f"a SUBSET of {rows} of {of} test {samples}"
    test += corruption_words(record)
    device = f"{record.device} latency" if record.device == "CPU" else record.device
    latency, artifact = record.latency, record.artifact
    kernels = "fused kernels, " if latency.backend == "triton" else ""
    return (
        f"{record.data}, {test}{split} "
        f"(plans compared on the first {record.fidelity_samples}), "
        f"qk_norm {'on' if record.qk_norm else 'off'}; {attention_words(artifact)}, "
        f"fitted on {artifact.calibration_set.rows} {samples}; "
        f"{record.precision}, {device}, batch {latency.batch_size}, median of "
        f"{latency.rounds} interleaved rounds, {kernels}"
        f"{'all as CUDA graphs' if latency.cuda_graph else 'eager, no CUDA graph'}"
    )


def print_evaluation(record: EvaluationRecord) -> None:
    table = Table(title=escape(record.run), caption=escape(caption(record)))
    for title in titles(record):
        name = title == "method"
        table.add_column(str(title), justify="left" if name else "right", no_wrap=not name)
    previous = None
    for row in record.rows:
        if previous not in (None, row.group):
            table.add_section()
        previous = row.group
        table.add_row(*map(escape, cells(row, record)))
    console().print(table)


def print_drift(ratios: dict[str, float]) -> None:
    """One number a layer: about 1 where the test samples are like those of the calibration."""
    words = ", ".join(f"{path} {ratio:.3g}" for path, ratio in ratios.items())
    print(f"Column error on the test samples over that at calibration: {words}")
