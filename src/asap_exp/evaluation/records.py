"""Evaluation records: gathered out of run directories, kept as JSON, grouped over seeds."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asap_exp.config import PathsConfig
from asap_exp.errors import UserError
from asap_exp.files import read_json, write_json
from asap_exp.runs import Run, all_runs, check_task, short_hash, without

Record = dict[str, Any]

KIND, FORMAT = "evaluation", 1

STAGES = ("train", "distill", "evaluate")
"""Whose manifests a record carries."""

OTHER_MAP = "map_"
"""How the keys of further compiled maps of the same teacher begin."""

RELAXATION = 1.6
"""Of relaxed truncations in records that do not say otherwise: conf/evaluate.yaml's."""

ASKED = ("accuracy_drop", "latency_ratio")
"""Of a budget: what it was to keep, beside what came of it."""

AVERAGED = (
    "accuracy",
    "perplexity",
    "val_perplexity",
    "agreement",
    "kl",
    "l1_row_distance",
    "column_error",
    "layer_speedup",
    "model_speedup",
)


@dataclass(frozen=True)
class Group:
    """Records that differ in their seeds alone."""

    slug: str
    records: list[Record]

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def seeds(self) -> list[int]:
        return [record["seed"] for record in self.records]


def gather(paths: PathsConfig, task: str | None, run: str | None, folder: Path) -> list[Path]:
    """Copies the record of every finished evaluation into `folder`; returns what it copied."""
    runs = all_runs(paths, task) if run is None else [run_of_task(Path(run), task)]
    kept = []
    for source in (f for r in runs for f in sorted(r.path.glob("evaluate/*/metrics.json"))):
        record = with_manifests(source, record_in(source, KIND, FORMAT))
        target = folder / f"{record['run'].replace('/', '-')}-{source.parent.name}.json"
        write_json(target, record)
        kept.append(target)
    return kept


def run_of_task(path: Path, task: str | None) -> Run:
    """The run at `path`; UserError where there is none, or it is of another task."""
    run = Run(path)
    check_task(run, task)
    return run


def load_records(folder: Path) -> list[Record]:
    records = records_in(folder, KIND, FORMAT)
    return [with_manifests(file, record) for file, record in records.items()]


def with_manifests(file: Path, record: Record) -> Record:
    """`record`, out of `file`; UserError where it lacks the manifest of a stage."""
    missing = [stage for stage in STAGES if stage not in record.get("manifests", {})]
    if missing:
        raise UserError(
            f"{file} has no manifest of {', '.join(missing)}: a number without one is not reported"
        )
    return record


def records_in(folder: Path, kind: str, version: int) -> dict[Path, Record]:
    """By file, in order of name; UserError for a file that is no such record."""
    return {file: record_in(file, kind, version) for file in sorted(folder.glob("*.json"))}


def record_in(file: Path, kind: str, version: int) -> Record:
    record = read_json(file)
    if not isinstance(record, dict) or record.get("format") != version:
        raise UserError(f"{file} is no {kind} record of this version (format {version})")
    return record


def grouped(records: Iterable[Record]) -> list[Group]:
    """Groups in a stable order: what is predicted, qk_norm on before off, configuration."""
    by_key: dict[str, list[Record]] = {}
    for record in newest(records):
        by_key.setdefault(short_hash(configuration(record)), []).append(record)
    groups = [
        Group(
            f"{kind(rs[0])}-{'qknorm' if rs[0]['qk_norm'] else 'plain'}-{key}",
            sorted(rs, key=lambda r: r["seed"]),
        )
        for key, rs in by_key.items()
    ]
    return sorted(
        groups,
        key=lambda g: (kind(g.first), not g.first["qk_norm"], tokens(g.first) or 0, g.slug),
    )


def kind(record: Record) -> str:
    """The data set, and what is predicted on it if that is no class."""
    return f"{record['data']}-mlm" if record.get("objective") == "mlm" else record["data"]


def train_config(record: Record) -> dict[str, Any]:
    return record["manifests"]["train"]["config"]


def tokens(record: Record) -> int | None:
    """How many patches an image becomes; None for texts, which differ."""
    config = train_config(record)
    patch_size = config["model"].get("patch_size")
    return None if patch_size is None else (config["data"]["image_size"] // patch_size) ** 2


def newest(records: Iterable[Record]) -> list[Record]:
    """Of several evaluations of one run under one configuration, the newest alone.

    They are no further seeds, and averaging them would only narrow the deviation.
    """
    chosen: dict[tuple[str, str], Record] = {}
    for record in sorted(records, key=lambda r: r["manifests"]["evaluate"]["ended"]):
        chosen[record["run"], short_hash(configuration(record))] = record
    return list(chosen.values())


def configuration(record: Record) -> dict[str, Any]:
    """What two records must share to be averaged: everything but the seed of the training."""
    manifests = record["manifests"]
    left_out = ("seed", "logger", "callbacks", "resume", "init_from")
    initial = manifests["train"].get("initial")
    budget = record["artifact"].get("budget")
    return {
        "train": without(train_config(record), left_out),
        **({"initial": without(initial, ("run", "teacher_sha256"))} if initial else {}),
        "calibration": record["artifact"]["calibration"],
        "layers": record["artifact"]["layers"],
        **({"budget": {key: budget[key] for key in ASKED}} if budget else {}),
        "test": record["test"],
        "device": record["device"],
        "latency": record["latency"],
        "fidelity_samples": record["fidelity_samples"],
        **relaxation_of(manifests),
        **({"maps": "all"} if record.get("maps") else {}),
        **({"corruption": record["corruption"]} if record.get("corruption") else {}),
    }


def relaxation_of(manifests: dict[str, Any]) -> dict[str, float]:
    """That of truncations, where it is not the usual one: their rows have one name."""
    asked = manifests.get("evaluate", {}).get("config", {}).get("relaxation", RELAXATION)
    return {} if asked == RELAXATION else {"relaxation": asked}


def own_row(_: Record, row: dict[str, Any]) -> tuple[str, str]:
    return row["key"], row["label"]


def averaged_rows(
    group: Group, by: Callable[[Record, dict[str, Any]], tuple[str, str]] = own_row
) -> list[dict[str, Any]]:
    """A row for every method: `{label, group, n, MEASURE: {mean, std} or None}`.

    `by` gives the key of the method that a record's row belongs to, and its label. The standard
    deviation is that of a sample; None for one seed. A method that a record lacks is averaged over
    the others, and `n` says over how many.
    """
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in group.records:
        for row in record["rows"]:
            by_key.setdefault(by(record, row), []).append(row)
    return [
        {
            "key": key,
            "label": label,
            "group": rows[0]["group"],
            "n": len(rows),
            **{name: mean_std([row.get(name) for row in rows]) for name in AVERAGED},
            "layer_ms": mean_latency([row["layer_ms"] for row in rows]),
            "model_ms": mean_latency([row["model_ms"] for row in rows]),
            "peak_memory_mib": mean_std([row["peak_memory_mib"] for row in rows]),
        }
        for (key, label), rows in by_key.items()
    ]


def main_rows(group: Group) -> list[dict[str, Any]]:
    """The averaged rows of the evaluation's own map and of what stands beside it."""
    return [row for row in averaged_rows(group) if not row["key"].startswith(OTHER_MAP)]


def mean_latency(timings: list[dict[str, float] | None]) -> dict[str, Any] | None:
    """Mean and deviation of the medians; of one record alone, its quartiles too."""
    known = [timing for timing in timings if timing is not None]
    average = mean_std([timing["median"] for timing in known])
    return average if average is None or len(known) > 1 else {**average, **known[0]}


def mean_std(values: list[float | None]) -> dict[str, float | None] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "mean": statistics.fmean(known),
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }
