"""Benchmark that goes on from one that was stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asap_exp.core.locks import held
from asap_exp.core.manifest import BenchmarkManifest, attempts_at, manifest


@contextmanager
def continued(folder: Path, **facts: Any) -> Iterator[dict[str, Any]]:
    """Hold the folder of a benchmark and write its manifest, with the attempts before this one."""
    path = folder / "manifest.json"
    with held(folder):
        before = attempts_at(path, BenchmarkManifest)
        with manifest(path, earlier_attempts=before, **facts) as record:
            yield record
