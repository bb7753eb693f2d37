"""Records for tests: typed from plain values, and changed in ways that keep them consistent."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from asap_exp.core.files import read_json, write_json
from asap_exp.core.records.benchmark import BenchmarkRecord
from asap_exp.core.records.evaluation import EvaluationRecord
from asap_exp.core.sealed import SEAL, sealed
from asap_exp.core.typed import from_json

FILE = Path("record.json")
PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "records"


def published(name: str) -> dict[str, Any]:
    """The first published record whose file begins so, as plain values."""
    return read_json(sorted(PUBLISHED.glob(f"{name}*.json"))[0])


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in deepcopy(value).items() if key != SEAL}


def untagged(text: str) -> str:
    """Markdown without the tags that the report writes itself."""
    for tag in ("<!--", '<details markdown="1"><summary>', "</summary>", "</details>"):
        text = text.replace(tag, "")
    return text


def typed(value: dict[str, Any]) -> EvaluationRecord:
    """A record of what a test has changed."""
    return from_json(EvaluationRecord, unsealed(value), FILE)


def typed_benchmark(value: dict[str, Any]) -> BenchmarkRecord:
    return from_json(BenchmarkRecord, unsealed(value), FILE)


def write_sealed_record(file: Path, value: dict[str, Any]) -> None:
    """As whoever knows how could write it: with the hash of what was changed."""
    write_json(file, sealed(value))


def with_seed(value: dict[str, Any], seed: int, accuracy: float | None = None) -> dict[str, Any]:
    """Of another training; every row with this accuracy, if one is given."""
    copied = deepcopy(value) if accuracy is None else without_samples(value)
    copied |= {"seed": seed, "run": f"digits/vit-sinkhorn/0-s{seed}"}
    for stage in ("train", "evaluate"):
        copied["manifests"][stage]["seed"] = seed
    copied["manifests"]["train"]["config"]["seed"] = seed
    for row in copied["rows"]:
        row["accuracy"] = row["accuracy"] if accuracy is None else accuracy
    return copied


def without_samples(value: dict[str, Any]) -> dict[str, Any]:
    """As older versions wrote it: without the samples that are right."""
    return {key: item for key, item in deepcopy(value).items() if key != "right"}


def with_test_rows(value: dict[str, Any], rows: int, of: int) -> dict[str, Any]:
    copied = without_samples(value)
    copied["test"] = {"rows": rows, "of": of}
    copied["manifests"]["evaluate"]["data"] |= {"test_rows": rows, "test_rows_in_all": of}
    return copied


def with_objective(value: dict[str, Any], objective: str) -> dict[str, Any]:
    return deepcopy(value) | {"objective": objective}


def with_data(value: dict[str, Any], name: str) -> dict[str, Any]:
    """Of another data set."""
    copied = deepcopy(value) | {"data": name}
    copied["manifests"]["train"]["config"]["data"]["name"] = name
    return copied


def of_one_layer(value: dict[str, Any]) -> dict[str, Any]:
    """As if the last layer alone had been compiled."""
    copied = deepcopy(value)
    artifact = copied["artifact"]
    path = artifact["layers"][-1]
    artifact["layers"] = [path]
    for key in ("attentions", "column_error"):
        artifact[key] = {path: artifact[key][path]}
    copied["fidelity"] = [row for row in copied["fidelity"] if row["layer"] == path]
    return copied


BUDGET = {
    "accuracy_drop": 0.2,
    "latency_ratio": None,
    "split": "validation",
    "rows": 100,
    "teacher_accuracy": 0.9,
    "accuracy": 0.9,
    "kl": 0.01,
    "teacher_model_ms": 2.0,
    "model_ms": 1.0,
    "seen_in_training": False,
}


def with_budget(value: dict[str, Any], **changes: Any) -> dict[str, Any]:
    copied = deepcopy(value)
    layer = {"became": "ASAP", "layer_ms": 1.0, "teacher_layer_ms": 2.0, "kl_alone": 0.0}
    layers = dict.fromkeys(copied["artifact"]["layers"], layer)
    copied["artifact"]["budget"] = {**BUDGET, "layers": layers, **changes}
    return copied


def choosing(value: dict[str, Any], *became: str) -> dict[str, Any]:
    """Of a budget that chose these attentions for the layers, from the first on in turn."""
    copied = with_budget(value)
    layers = copied["artifact"]["budget"]["layers"]
    for number, path in enumerate(layers):
        layers[path] = {**layers[path], "became": became[number % len(became)]}
    return copied


def without_maps(value: dict[str, Any]) -> dict[str, Any]:
    """As if the teacher's other maps had not been measured."""
    copied = {key: item for key, item in deepcopy(value).items() if key != "maps"}
    copied["rows"] = [row for row in copied["rows"] if not row["key"].startswith("map_")]
    return copied
