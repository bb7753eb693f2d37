"""Artifacts of wandb that stand for data, teachers, maps and evaluations by their hashes."""

from pathlib import Path
from typing import Any

import pytest
import wandb

from asap_exp.core.config import LoggerConfig
from asap_exp.core.lineage import (
    Product,
    artifact_of,
    data_product,
    files_of,
    makes,
    map_product,
    reads,
    uploads,
)
from asap_exp.core.runs import Run

IDENTITY = {
    "source": "a file",
    "train_sha256": "a" * 64,
    "train_rows": 7,
    "val_rows_sha256": "b" * 64,
    "test_sha256": "c" * 64,
    "test_rows": 3,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")


class Tracker:
    """Stands for wandb's run, online; keeps what reaches it."""

    offline = False

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.used: list[Any] = []
        self.logged: list[Any] = []

    def use_artifact(self, artifact: Any) -> None:
        if self.error:
            raise self.error
        self.used.append(artifact)

    def log_artifact(self, artifact: Any) -> None:
        self.logged.append(artifact)


def test_splits_are_products_of_their_own() -> None:
    train, test = (data_product("digits", split, IDENTITY) for split in ("train", "test"))
    assert set(train.hashes) == {"train_sha256", "val_rows_sha256"}
    assert set(test.hashes) == {"test_sha256"}
    assert train.facts["train_rows"] == 7
    assert "test_rows" not in train.facts
    assert train.name.startswith("digits-train-")


def test_content_alone_decides_the_digest_and_the_name() -> None:
    one = data_product("digits", "train", IDENTITY)
    moved = data_product("digits", "train", IDENTITY | {"source": "another file"})
    other = data_product("digits", "train", IDENTITY | {"train_sha256": "d" * 64})
    digests = [artifact_of(product).digest for product in (one, moved, other)]
    assert digests[0] == digests[1] != digests[2]
    assert one.name == moved.name != other.name


def test_artifact_holds_references_and_no_file() -> None:
    artifact = artifact_of(Product("a/b c", "dataset", {"part": "e" * 64}, {"rows": 2}))
    (entry,) = artifact.manifest.entries.values()
    assert (entry.path, entry.ref, entry.local_path) == ("part", f"sha256:{'e' * 64}", None)
    assert (artifact.name, artifact.metadata) == ("a-b-c", {"rows": 2})


def test_map_is_known_by_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "name", "digits/vit-sinkhorn/0123-s0")
    identity = {"tensors_sha256": "f" * 64, "refine": 0}
    one, two = (map_product(Run(tmp_path), identity | {"refine": n}) for n in (0, 1))
    assert one.hashes["tensors"] == two.hashes["tensors"]
    assert one.hashes["identity"] != two.hashes["identity"]
    assert one.name != two.name


def test_files_are_uploaded_only_where_that_was_chosen(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"weights")
    product = Product("teacher", "model", {"weights": "a" * 64}, {})
    for upload in (False, True):
        chosen = LoggerConfig(True, "p", None, [], upload=upload)
        tracker = Tracker()
        makes(tracker, product, *uploads(chosen, file))
        names = [artifact.name for artifact in tracker.logged]
        assert names == ["teacher", "teacher-files"][: 1 + upload]
        assert tracker.logged[0].digest == artifact_of(product).digest
    (entry,) = files_of(artifact_of(product), [file]).manifest.entries.values()
    assert (entry.path, entry.local_path) == ("weights.bin", str(file))


def test_what_wandb_refuses_is_a_warning_and_the_work_goes_on(
    capsys: pytest.CaptureFixture,
) -> None:
    product = data_product("digits", "test", IDENTITY)
    reads(Tracker(wandb.CommError("no such project")), product)
    assert "did not take the artifact digits-test-" in capsys.readouterr().err
    tracker = Tracker()
    reads(tracker, product)
    assert [artifact.type for artifact in tracker.used] == ["dataset"]


def test_without_a_tracker_nothing_happens() -> None:
    reads(None, data_product("digits", "test", IDENTITY))
    makes(None, data_product("digits", "test", IDENTITY))
