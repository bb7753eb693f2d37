"""What a stage made, as plain values that can be compared: all but times."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.reliability.bench import run_of

TIMES = {
    "layer_ms",
    "model_ms",
    "layer_speedup",
    "model_speedup",
    "peak_memory_mib",
    "started",
    "ended",
    "wall_seconds",
    "train_seconds",
    "validate_seconds",
    "compile_seconds",
    "earlier_attempts",
    "resumed_from",
    "command",
    "code",
}
"""Keys below which two equal runs may differ."""

NOT_COMPUTED = {"logger", "paths", "callbacks", "trainer", "resume"}
"""Keys of a configuration that change no result on one machine."""


def tensors(file: Path) -> tuple[str, str]:
    """Names, types and shapes, and the values' hash; metadata left out."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return json.dumps(header, sort_keys=True), hashlib.sha256(data[8 + length :]).hexdigest()


def timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in TIMES}
    return [timeless(item) for item in tree] if isinstance(tree, list) else tree


def load(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def of_train(results: Path, leaf: str) -> dict[str, Any]:
    run = run_of(results, leaf)
    manifest = load(run / "manifest.json")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    for key in ("root", "cache"):
        config["data"].pop(key, None)
    return {
        "weights": tensors(run / "teacher.safetensors"),
        **{key: manifest.get(key) for key in ("status", "teacher_sha256", "kept_epoch")},
        "config": {key: value for key, value in config.items() if key not in NOT_COMPUTED},
    }


def of_distill(results: Path, leaf: str) -> dict[str, Any]:
    """Of every finished map, by its folder's name."""
    return {
        file.parent.name: {
            "tensors": tensors(file.parent / "asap.safetensors"),
            "identity": load(file.parent / "asap.json"),
            "fidelity": load(file.parent / "fidelity.json"),
            "status": load(file.parent / "manifest.json")["status"],
        }
        for file in sorted(run_of(results, leaf).glob("distill/*/manifest.json"))
    }


def of_evaluate(results: Path, leaf: str) -> dict[str, Any]:
    files = sorted(run_of(results, leaf).glob("evaluate/*/metrics.json"))
    return {file.parent.name: timeless(unsealed(load(file))) for file in files}


def unsealed(metrics: dict[str, Any]) -> dict[str, Any]:
    """A record without the hashes over itself, its times included, which it may do without."""
    manifests = metrics["manifests"]
    evaluated = {key: value for key, value in manifests["evaluate"].items() if key != "sha256"}
    rest = {key: value for key, value in metrics.items() if key != "sha256"}
    return {**rest, "manifests": {**manifests, "evaluate": evaluated}}


def of_report(results: Path, _: str) -> dict[str, Any]:
    """What a report shows, to the byte, and the records that it gathers.

    All but the hash in a group's name: it covers keys of the configuration that show nothing.
    """
    files = [
        file
        for pattern in ("tables.*", "benchmark.*", "index.html", "figures/*")
        for file in sorted((results / "report").glob(pattern))
    ]
    records = sorted((results / "report").glob("records/**/*.json"))
    return {
        "shown": {
            unhashed(file.name.encode()).decode(): hashlib.sha256(
                unhashed(file.read_bytes())
            ).hexdigest()
            for file in files
        },
        "records": {file.name: timeless(load(file)) for file in records},
    }


def unhashed(text: bytes) -> bytes:
    return re.sub(rb"-(plain|qknorm)-[0-9a-f]{8}", rb"-\1", text)


OF = {"train": of_train, "distill": of_distill, "evaluate": of_evaluate, "report": of_report}


def facts(stage: str, results: Path, leaf: str = "*-s*") -> dict[str, Any]:
    """What `stage` made of the run `leaf`; what cannot be read equals nothing undisturbed."""
    try:
        return OF[stage](results, leaf)
    except Exception as error:
        return {"unreadable": f"{type(error).__name__}: {error}"}


def difference(now: Any, then: Any, path: str = "") -> str:
    """The first place in which two trees differ, with both values; empty where they are equal."""
    if isinstance(now, dict) and isinstance(then, dict):
        for key in sorted(now.keys() | then.keys(), key=str):
            if key not in now or key not in then:
                return f"{path}.{key} {'missing' if key not in now else 'new'}"
            if found := difference(now[key], then[key], f"{path}.{key}"):
                return found
        return ""
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        pairs = (
            difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(now, then, strict=True))
        )
        return next(filter(None, pairs), "")
    return "" if repr(now) == repr(then) else f"{path}: {now!r:.60} for {then!r:.60}"
