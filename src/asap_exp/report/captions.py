"""Titles, conditions and origins of records, for tables and figures."""

from asap_exp.core.console import counted
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.words import layer_words, map_settings, other_label
from asap_exp.report.groups import Group
from asap_exp.report.markdown_table import commit


def group_title(group: Group) -> str:
    """Return the task of a group in a few words."""
    data = f", data {group.data}" if group.data else ""
    published = ", published" if group.published else ""
    epochs = group.first.manifests.train.epochs if group.names_epochs else None
    trained = "" if epochs is None else f", {counted(epochs, 'epoch')}"
    return f"{record_title(group.first)}{trained}{data}{published}"


def record_title(record: EvaluationRecord) -> str:
    training, change = record.training, record.corruption
    n, half_steps = training.tokens, training.attention.half_steps
    compiled = len(record.artifact.layers)
    parts = [
        record.data_title,
        record.trained_for.title,
        f"n ≤ {training.data.max_length}" if n is None else f"n = {n}",
        "" if half_steps is None else f"Sinkformer of {half_steps} half-steps",
        "softmax teacher" if record.artifact.imitates else "",
        "with qk_norm" if record.qk_norm else "without qk_norm",
        "" if change is None else f"{change.name} of severity {change.severity}",
        "" if record.all_layers else f"{compiled} of {record.num_layers} layers",
    ]
    return ", ".join(filter(None, parts))


def caption(record: EvaluationRecord) -> str:
    """Describe the conditions of the measurement. A subset is called a subset."""
    rows, of, samples = record.test.rows, record.test.of, record.samples
    test = f"all {of}" if record.test.whole else f"a SUBSET of {rows} of {of}"
    latency = record.latency
    kernels = "fused kernels" if latency.backend == "triton" else "plain PyTorch"
    graph = "CUDA graphs" if latency.cuda_graph else "eager"
    return (
        f"Measured on {test} test {samples}, in {record.precision} on {record.device}. "
        f"Latency per batch of {latency.batch_size}: median of {latency.rounds} interleaved "
        f"rounds, {kernels}, {graph}. {map_words(record)}."
    )


def map_words(record: EvaluationRecord) -> str:
    """Describe the record's own map, layer by layer if a budget chose, or what stands for it."""
    if (words := other_label(record.artifact)) is not None:
        fit = "" if record.artifact.calibration.fitted else ", without a fit"
        return f"{words[0].upper()}{words[1:]}{fit}"
    if record.artifact.budget is not None:
        return f"ASAP: {layer_words(record.artifact)}"
    return f"ASAP: {map_settings(record.artifact).label.removeprefix('ASAP, ')}"


def origins(group: Group) -> list[list[str]]:
    """Return the origins of the group's numbers, training and measurement, as rows of two cells."""
    record = group.first
    train, evaluated = record.manifests.train, record.manifests.evaluate
    initial = train.initial
    pooled = record.trained_on.split == "pooled"
    rows = {
        "seeds": ", ".join(map(str, group.seeds)),
        "trained on": training_rows(record),
        "data from": record.trained_on.source or "",
        "split": "training and test rows pooled and dealt again" if pooled else "",
        "initial weights": "" if initial is None else f"of task {initial.task}",
        "epochs": f"{train.epochs}; weights of the {record.training.recipe.keep} epoch are kept",
        "parameters": f"{train.parameters:,}",
        "training hardware": str(train.hardware.gpu or train.hardware.cpu),
        "training time, s": ", ".join(f"{r.train_seconds:.0f}" for r in group.records),
        "plans compared on": f"the first {record.fidelity_samples} test {record.samples}",
        "torch": f"{train.versions['torch']} (training), {evaluated.versions['torch']}",
        "code": f"{commits(group, 'train')} (training), {commits(group, 'evaluate')}",
        "figures": group.slug,
    }
    return [[key, value] for key, value in rows.items() if value]


def training_rows(record: EvaluationRecord) -> str:
    """Describe the training rows: which, how many, and of how many. A subset is called a subset."""
    data, shortened = record.trained_on, record.training.trainer.shortened
    subset = f", a SUBSET of the split's {data.train_split_rows_in_all}" if data.is_subset else ""
    limited = f", {shortened}" if shortened else ""
    return f"{data.train_on} ({data.train_rows} rows{subset}{limited})"


def commits(group: Group, stage: str) -> str:
    return ", ".join(sorted({commit(getattr(r.manifests, stage)) for r in group.records}))
