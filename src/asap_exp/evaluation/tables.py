"""The evaluation table, in one place: which columns, how each number is written."""

from collections.abc import Callable, Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from asap_exp.config import CalibrationConfig
from asap_exp.console import console
from asap_exp.distillation.identity import CalibrationRecipe, Identity
from asap_exp.evaluation.latency import Latency
from asap_exp.evaluation.record import EvaluationRecord, Row


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


PAPERS_MAP: dict[str, Any] = {
    "steps": ["ridge"],
    "slices": 32,
    "query_features": False,
    "adaptive": False,
    "logits": False,
    "refine": 0,
    "relaxed": False,
}
"""The paper's regression, by its size in this project; a title names every other map."""


def is_papers(made: CalibrationRecipe) -> bool:
    """Whether the map is the paper's; what a recipe does not name is as it is there."""
    named = {key: getattr(made, key) for key in PAPERS_MAP}
    return all(value in (None, PAPERS_MAP[key]) for key, value in named.items())


def map_words(record: EvaluationRecord) -> str:
    """How the record's map differs from the paper's, for a title; nothing where it does not."""
    if record.artifact.budget is not None:
        return "; ASAP within a budget"
    made = record.artifact.calibration
    if is_papers(made):
        return ""
    features = "".join(f" + {words}" for words in feature_words(made))
    refine = f", {refine_words(made)}" if made.refine else ""
    return f"; ASAP of {made.slices} slices{features}{refine}, {step_words(made)}"


def step_words(made: CalibrationRecipe) -> str:
    return " + ".join(step.replace("_", " ") for step in made.steps or PAPERS_MAP["steps"])


def feature_words(made: CalibrationRecipe | Identity) -> list[str]:
    """What a map regresses on beside potentials."""
    kinds = ["query"] if made.query_features else []
    kinds += ["adaptive"] if made.adaptive else []
    kinds += ["logit"] if made.logits else []
    listed = " and ".join(filter(None, [", ".join(kinds[:-1]), *kinds[-1:]]))
    return [f"{listed} features"] if kinds else []


def refine_words(made: CalibrationRecipe | CalibrationConfig) -> str:
    """How many updates a map makes of its dual, and whether they go further than plain ones."""
    relaxed = made.relaxes if isinstance(made, CalibrationConfig) else made.relaxed
    return f"refine {made.refine}{' relaxed' if relaxed else ''}"


def corruption_words(record: EvaluationRecord) -> str:
    """What was done to the test images; nothing where nothing was."""
    change = record.corruption
    return "" if change is None else f", {change.name} of severity {change.severity}"


def attention_words(artifact: Identity) -> str:
    """What the compiled layers became; by layer where a budget chose."""
    if artifact.budget is not None:
        return "by layer " + "; ".join(x.became for x in artifact.budget.layers.values())
    features = " + ".join([f"{artifact.slices} slices", *feature_words(artifact)])
    return f"{features}, {refine_words(artifact.calibration)}"


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
