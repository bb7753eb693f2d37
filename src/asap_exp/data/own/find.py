"""From a request for own data to a complete configuration: what is null is found in the data."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from asap_exp.core.composing import parse
from asap_exp.core.config import (
    OwnImageTrainRequest,
    OwnTextTrainRequest,
    TrainConfig,
)
from asap_exp.core.config.own_data import AUTO, OwnImageRequest, OwnTextRequest
from asap_exp.data.own.classes import shortened
from asap_exp.data.own.image_facts import image_facts, sample
from asap_exp.data.own.places import FOLDER, name_of
from asap_exp.data.own.sizes import chosen_sizes
from asap_exp.data.own.splits import ImageSplits, OwnSplits
from asap_exp.data.own.text_facts import usual_length, vocabulary
from asap_exp.data.own.text_splits import TextSplits

Request = OwnImageTrainRequest | OwnTextTrainRequest


def found(request: Request) -> TrainConfig:
    """Return the configuration of a request, with everything that depends on the data.

    Prints it in a few lines. Raises UserError that names the key to set if something cannot be
    found.
    """
    tree = asdict(request)
    data = tree["data"]
    if Path(data["path"]).exists():
        data["path"] = str(Path(data["path"]).absolute())  # later stages may run elsewhere
    if data["name"] == AUTO:
        data["name"] = name_of(data["path"])
    if isinstance(request, OwnImageTrainRequest):
        splits, lines = looked_at_images(request.data, tree)
    else:
        splits, lines = looked_at_texts(request.data, tree)
    data["fingerprint"] = splits.fingerprint
    if "validation" in splits.reader.splits:
        data["val_fraction"] = None
    if "test" in splits.reader.splits:
        data["test_fraction"] = None
    rows = len(splits.rows("train").numbers)
    tree["recipe"]["batch_size"] = min(tree["recipe"]["batch_size"], training_rows(data, rows))
    print("\n".join([*split_lines(splits, data), *lines]), flush=True)
    return parse(OmegaConf.create(tree), TrainConfig)


def training_rows(data: dict[str, Any], rows: int) -> int:
    """Return the number of rows to train on, once validation rows are held out."""
    held_out = round(rows * (data["val_fraction"] or 0)) if data["train_on"] == "train" else 0
    return max(rows - held_out, 1)


def looked_at_images(request: OwnImageRequest, tree: dict[str, Any]) -> tuple[OwnSplits, list[str]]:
    """Complete `tree` by what images show; return their splits, and lines about what was found."""
    data, model = tree["data"], tree["model"]
    splits = ImageSplits(request)
    data["image_column"] = splits.sample_column
    lines = complete_classes(splits, data)
    rows = splits.rows("train")
    some = sample(splits.reader, rows, data["image_column"])
    facts = image_facts(some, data["name"], data["channels"])
    data["channels"] = facts.channels
    size, patch = chosen_sizes(facts.side, data["image_size"], model["patch_size"])
    data["image_size"], model["patch_size"] = size, patch
    if data["augment"]["crop_padding"] is None:
        data["augment"]["crop_padding"] = size // 8
    if data["mean"] is None or data["std"] is None:
        mean, std = facts.statistics(size)
        data["mean"] = mean if data["mean"] is None else data["mean"]
        data["std"] = std if data["std"] is None else data["std"]
    grid = size // patch
    return splits, [
        *lines,
        f"  images: {facts.words} (data.channels={facts.channels})",
        f"  model: images of {size} x {size} pixels in {grid} x {grid} patches of {patch} x "
        f"{patch}, {grid**2} tokens (data.image_size={size} model.patch_size={patch})",
        f"  mean {joined(data['mean'])}, standard deviation {joined(data['std'])} "
        "(data.mean, data.std)",
    ]


def looked_at_texts(request: OwnTextRequest, tree: dict[str, Any]) -> tuple[OwnSplits, list[str]]:
    """Complete `tree` by what texts show; return their splits, and lines about what was found."""
    data = tree["data"]
    splits = TextSplits(request)
    data["text_column"] = splits.sample_column
    lines = complete_classes(splits, data) if splits.has_classes else []
    texts = splits.split_texts("train")
    if data["max_length"] is None:
        data["max_length"] = usual_length(texts)
    if data["vocab_size"] is None:
        data["vocab_size"] = vocabulary(texts)
    return splits, [
        *lines,
        f"  texts: column {data['text_column']} (data.text_column), up to {data['max_length']} "
        f"tokens (data.max_length) out of at most {data['vocab_size']} (data.vocab_size)",
    ]


def complete_classes(splits: OwnSplits, data: dict[str, Any]) -> list[str]:
    """Complete the keys of the classes; return a line about them."""
    names = splits.names
    assert names is not None
    for split in splits.reader.splits:
        splits.labels(split)  # raises UserError if a class is not among those of the training split
    data["label_column"], data["num_classes"] = splits.label_column, len(names)
    where = "folders" if splits.reader.source.endswith(FOLDER) else f"column {splits.label_column}"
    return [f"  classes: {len(names)}, {shortened(names)} ({where}; data.label_column)"]


def split_lines(splits: OwnSplits, data: dict[str, Any]) -> list[str]:
    """Return lines that say where the data is, and how many rows each split has."""
    own = splits.reader.splits
    parts = []
    for split, of in splits.rows_in_all().items():
        used = len(splits.rows(split).numbers)
        subset = "" if used == of else f" of {of:,} (subset, data.limit={data['limit']})"
        held_out = f", {data['test_fraction']:g} of the training split" if split not in own else ""
        parts.append(f"{split} {used:,}{subset}{held_out}")
    if "validation" not in own:
        parts.insert(1, f"validation {data['val_fraction']:g} of that")
    drawn = "" if {"validation", "test"} <= {*own} else f"; drawn with seed {data['split_seed']}"
    return [
        f"Data: {data['name']}, {splits.source} at {data['path']}",
        f"  {splits.kind}: {'; '.join(parts)}{drawn}",
    ]


def joined(numbers: list[float]) -> str:
    """List numbers."""
    return ", ".join(f"{number:g}" for number in numbers)
