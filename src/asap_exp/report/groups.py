"""Groups of evaluation records that differ only in their seeds."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from asap_exp.core.objectives import CLASSIFICATION
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.records.settings import RELAXATION
from asap_exp.core.runs import drop_keys, short_hash
from asap_exp.core.typed import to_json


@dataclass(frozen=True)
class Group:
    """Records that differ only in their seeds."""

    slug: str
    records: list[EvaluationRecord]
    data: str = ""
    """Hash of the data if another group has the same configuration and other data, else empty."""
    published: bool = False
    """True if the records are published ones, shown beside one's own."""
    names_epochs: bool = False
    """True if another group of the same task and norm was trained for other epochs."""
    better: "Group | None" = None
    """Records of the same teachers whose maps stand for ASAP on the paper's page, if not these."""

    @property
    def first(self) -> EvaluationRecord:
        return self.records[0]

    @property
    def seeds(self) -> list[int]:
        return [record.seed for record in self.records]


def grouped(records: Iterable[EvaluationRecord], *, published: bool = False) -> list[Group]:
    """Return groups in a stable order: by task, with qk_norm before without, by configuration."""
    by_key: dict[str, dict[str, list[EvaluationRecord]]] = {}
    for record in newest(records):
        same = by_key.setdefault(short_hash(configuration(record)), {})
        same.setdefault(data_hash(record), []).append(record)
    groups = [
        group(rs, key, data if len(same) > 1 else "", published)
        for key, same in by_key.items()
        for data, rs in same.items()
    ]
    return in_order(replace(each, names_epochs=has_other_epochs(each, groups)) for each in groups)


def has_other_epochs(group: Group, groups: Iterable[Group]) -> bool:
    """Return True if the epochs tell a group from another one of the same task and norm."""
    alike = [other.first for other in groups if order(other)[:3] == order(group)[:3]]
    return len({record.manifests.train.epochs for record in alike}) > 1


def in_order(groups: Iterable[Group]) -> list[Group]:
    """Return groups in the order of `grouped`, published ones after one's own of the same task."""
    return sorted(groups, key=order)


def group(records: list[EvaluationRecord], key: str, data: str, published: bool) -> Group:
    norm = "qknorm" if records[0].qk_norm else "plain"
    parts = [kind(records[0]), norm, key, data, "published" if published else ""]
    slug = "-".join(filter(None, parts))
    return Group(slug, sorted(records, key=lambda r: r.seed), data, published)


def data_hash(record: EvaluationRecord) -> str:
    """Return a hash of the training and test samples, independent of the data set's name."""
    return short_hash([record.trained_on.train_sha256, record.tested_on.test_sha256])


def order(group: Group) -> tuple[str, bool, int, bool, str]:
    record = group.first
    length = record.training.tokens or 0
    return kind(record), not record.qk_norm, length, group.published, group.slug


def kind(record: EvaluationRecord) -> str:
    """Return the data set's name, with the objective unless that is classification."""
    usual = record.trained_for is CLASSIFICATION
    return record.data if usual else f"{record.data}-{record.objective}"


def newest(records: Iterable[EvaluationRecord]) -> list[EvaluationRecord]:
    """Keep the newest of several evaluations of one run with the same configuration and data.

    They are not additional seeds; averaging them would only narrow the deviation.
    """
    chosen: dict[tuple[str, str, str], EvaluationRecord] = {}
    for record in sorted(records, key=lambda r: str(r.manifests.evaluate.ended)):
        chosen[record.run, short_hash(configuration(record)), data_hash(record)] = record
    return list(chosen.values())


def configuration(record: EvaluationRecord) -> dict[str, Any]:
    """Return everything that records must share to be averaged: all but the training seed.

    `data_hash` compares their data. Fields that a record's JSON lacks are left out, since the hash
    of the returned value names the figures.
    """
    train, artifact, budget = record.manifests.train, record.artifact, record.artifact.budget
    left_out = ("seed", "logger", "callbacks", "resume", "init_from")
    found: dict[str, Any] = {
        "train": drop_keys(train.config, left_out),
        "calibration": to_json(artifact.calibration, exclude_none=True),
        "layers": artifact.layers,
        "test": to_json(record.test),
        "device": record.device,
        "latency": to_json(record.latency, exclude_none=True),
        "fidelity_samples": record.fidelity_samples,
    }
    if train.initial is not None:
        found["initial"] = drop_keys(to_json(train.initial), ("run", "teacher_sha256"))
    if budget is not None:
        asked = {"accuracy_drop": budget.accuracy_drop, "latency_ratio": budget.latency_ratio}
        found["budget"] = asked
    if record.relaxation != RELAXATION:
        found["relaxation"] = record.relaxation
    if record.maps:
        found["maps"] = "all"
    if record.corruption is not None:
        found["corruption"] = to_json(record.corruption)
    return found
