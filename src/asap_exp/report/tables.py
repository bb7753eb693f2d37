"""The evaluation table, in one place: which columns, how each number is written."""

from collections.abc import Callable, Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from asap_exp.core.console import console
from asap_exp.core.records.evaluation import EvaluationRecord, Row
from asap_exp.core.records.latency import Latency
from asap_exp.core.records.words import attention_words, corruption_words


def percent(x: float | None) -> str:
    return "" if x is None else f"{100 * x:.2f}"


def significant(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def timing(x: Latency | None) -> str:
    """The median; the quartiles stand in the record and in tables.csv."""
    return "" if x is None else f"{x.median:.3g}"


def factor(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}x"


COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("method", "label", str),
    ("acc. %", "accuracy", percent),
    ("ppl", "perplexity", significant),
    ("val. ppl", "val_perplexity", significant),
    ("agree %", "agreement", percent),
    ("KL", "kl", significant),
    ("L1 rows", "l1_row_distance", significant),
    ("col. err.", "column_error", significant),
    ("layer ms", "layer_ms", timing),
    ("x", "layer_speedup", factor),
    ("model ms", "model_ms", timing),
    ("x", "model_speedup", factor),
    ("MiB", "peak_memory_mib", significant),
)
"""Title, field of a row of a record, formatter."""


def shown(record: EvaluationRecord, keys: Iterable[str]) -> list[str]:
    """Those of `keys` that are of this record's objective."""
    left_out = ("accuracy",) if record.is_masked else ("perplexity", "val_perplexity")
    return [key for key in keys if key not in left_out]


def columns(record: EvaluationRecord) -> list[tuple[str, str, Callable[[Any], str]]]:
    keys = shown(record, [key for _, key, _ in COLUMNS])
    return [column for column in COLUMNS if column[1] in keys]


def cells(row: Row, record: EvaluationRecord) -> list[str]:
    return [write(getattr(row, key)) for _, key, write in columns(record)]


def titles(record: EvaluationRecord) -> list[str | int]:
    return [title for title, _, _ in columns(record)]


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
