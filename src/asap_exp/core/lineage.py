"""Lineage on wandb: data, teacher, map and evaluation as artifacts, known by their hashes.

A stage logs what it makes and marks what it reads as used. Both give the artifact its content by
hash alone, so that the reader need not find the maker's: wandb takes artifacts of one name and one
content for the same, offline and online, whichever stage is uploaded first.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asap_exp.core.config import LoggerConfig
from asap_exp.core.console import warn
from asap_exp.core.runs import Run, public_config, short_hash
from asap_exp.core.sealed import digest
from asap_exp.core.tracking import reason

FACTS = (
    "recipe_hash",
    "parameters",
    "kept_epoch",
    "epochs",
    "best_val_accuracy",
    "best_val_perplexity",
)
"""Facts of a training's manifest that describe the teacher."""
SPLITS = {
    "train": ("train_sha256", "val_rows_sha256", "tokenizer_sha256", "classes_sha256"),
    "test": ("test_sha256",),
}
"""Hashes in a manifest's `data` that identify what is read of a data set."""


@dataclass(frozen=True)
class Product:
    """Artifact that a stage reads or makes: name, kind, SHA-256 of each part, and description."""

    name: str
    kind: str
    hashes: Mapping[str, str]
    facts: Mapping[str, Any]


def data_product(name: str, split: str, identity: Mapping[str, Any]) -> Product:
    """Return the `split` of a data set, "train" or "test", by its identity in a manifest."""
    hashes = {key: str(identity[key]) for key in SPLITS[split] if identity.get(key)}
    facts = {k: v for k, v in identity.items() if k == "source" or k.startswith((split, "val_"))}
    return Product(f"{name}-{split}-{short_hash(hashes)}", "dataset", hashes, facts)


def teacher_product(run: Run, record: Mapping[str, Any] | None = None) -> Product:
    """Return a trained model; `record` is its manifest if that is not written yet."""
    manifest = vars(run.manifest) if record is None else record
    return Product(
        f"teacher-{run.label}",
        "model",
        {"weights": manifest["teacher_sha256"]},
        {
            "run": run.name,
            "config": public_config(run.config),
            **{key: manifest[key] for key in FACTS if manifest.get(key) is not None},
        },
    )


def map_product(run: Run, identity: Mapping[str, Any]) -> Product:
    """Return a compiled map of the teacher `run` by its identity."""
    found = digest(dict(identity))
    hashes = {"tensors": identity["tensors_sha256"], "identity": found}
    return Product(f"map-{run.label}-{found[:8]}", "map", hashes, {"run": run.name, **identity})


def evaluation_product(run: Run, folder: Path, numbers: Mapping[str, float]) -> Product:
    """Return the evaluation in `folder` by the main numbers of its methods."""
    name, hashes = f"evaluation-{run.label}-{folder.name}", {"numbers": digest(dict(numbers))}
    return Product(name, "evaluation", hashes, {"run": run.name, **numbers})


def uploads(logger: LoggerConfig, *files: Path) -> tuple[Path, ...]:
    """Return the files if they are to be uploaded, else none."""
    return files if logger.upload else ()


def reads(tracker: Any, *products: Product) -> None:
    """Mark products as used by the tracker's run; None is no tracker."""
    for product in products if tracker is not None else ():
        with_words(product, lambda artifact: use(tracker, artifact))


def makes(tracker: Any, product: Product, *files: Path) -> None:
    """Log a product of the tracker's run, and `files` of it as another; None is no tracker."""
    if tracker is None:
        return
    with_words(product, tracker.log_artifact)
    if files:
        with_words(product, lambda artifact: tracker.log_artifact(files_of(artifact, files)))


def use(tracker: Any, artifact: Any) -> None:
    """Mark an artifact as used; wandb's own method refuses to, offline."""
    if tracker.offline:
        # What it would do online, but for a request that asks whether there is such an artifact.
        tracker._log_artifact(artifact, is_user_created=True, use_after_commit=True)
    else:
        tracker.use_artifact(artifact)


def with_words(product: Product, act: Any) -> None:
    """Hand the artifact of `product` to `act`, and warn where wandb refuses it: work goes on."""
    import wandb

    try:
        act(artifact_of(product))
    except (wandb.Error, ValueError) as error:
        warn(f"wandb did not take the artifact {product.name}: {reason(error)}")


def artifact_of(product: Product) -> Any:
    """Return wandb's artifact, whose digest follows from the hashes of the parts alone."""
    import wandb

    name = re.sub(r"[^A-Za-z0-9_.-]", "-", product.name)[:120]
    artifact = wandb.Artifact(name, product.kind, metadata=dict(product.facts))
    for part, sha256 in product.hashes.items():
        artifact.add_reference(f"sha256:{sha256}", name=part)
    return artifact


def files_of(artifact: Any, files: Iterable[Path]) -> Any:
    """Return an artifact of files beside `artifact`, which is the same with and without them."""
    import wandb

    found = wandb.Artifact(f"{artifact.name}-files", artifact.type, metadata=artifact.metadata)
    for file in files:
        found.add_file(str(file), name=file.name, policy="immutable")  # not copied elsewhere
    return found
