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
from asap_exp.core.config.own_data import AUTO
from asap_exp.core.console import say, shown, warn
from asap_exp.core.errors import UserError
from asap_exp.data.carving import carved
from asap_exp.data.own.classes import shortened
from asap_exp.data.own.header import WORDS
from asap_exp.data.own.image_facts import image_facts, sample
from asap_exp.data.own.places import FOLDER, SPLIT_WORDS, name_of
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
    splits: ImageSplits | TextSplits
    if isinstance(request, OwnImageTrainRequest):
        splits = ImageSplits(request.data)
    else:
        splits = TextSplits(request.data)
    data["path"] = splits.reader.path  # absolute: later stages may run elsewhere
    if data["name"] == AUTO:
        data["name"] = name_of(data["path"])
    if isinstance(splits, ImageSplits):
        lines = looked_at_images(splits, tree)
    else:
        lines = looked_at_texts(splits, tree)
    data["fingerprint"] = splits.fingerprint
    if "validation" in splits.reader.splits:
        data["val_fraction"] = None
    if "test" in splits.reader.splits:
        data["test_fraction"] = None
    counts = split_counts(splits, data)
    if (asked := tree["recipe"]["batch_size"]) > counts["train"]:
        tree["recipe"]["batch_size"] = counts["train"]
        lines.append(
            f"  batches: of at most all {counts['train']} training {splits.kind}, not {asked} "
            f"(recipe.batch_size={counts['train']}); a smaller one gives more updates an epoch"
        )
    say("\n".join([*split_lines(splits, data, counts), *lines]))
    return parse(OmegaConf.create(tree), TrainConfig)


def split_counts(splits: OwnSplits, data: dict[str, Any]) -> dict[str, int]:
    """Return the number of rows of each split, with the validation rows held out of training."""
    counts = {split: len(splits.rows(split).numbers) for split in splits.rows_in_all()}
    if "validation" in counts:
        return counts
    if data["val_fraction"] is None:
        raise UserError(
            f"data.val_fraction=null, but {data['path']} has no validation split; choose a "
            "fraction such as 0.1"
        )
    where, numbers = splits.rows("train")
    splits.check_classes_have_rows()
    train, validation = carved(
        splits.labels(where)[numbers],
        data["val_fraction"],
        seed=data["split_seed"],
        sample_name=splits.kind,
    )
    kept = len(numbers) if data["train_on"] == "train+val" else len(train)
    return {"train": kept, "validation": len(validation), "test": counts["test"]}


def looked_at_images(splits: ImageSplits, tree: dict[str, Any]) -> list[str]:
    """Complete `tree` by what images show; return lines about it."""
    data, model = tree["data"], tree["model"]
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
    return [
        *lines,
        f"  images: {facts.words} (data.channels={facts.channels})",
        f"  model: images of {size} x {size} pixels in {grid} x {grid} patches of {patch} x "
        f"{patch}, {grid**2} tokens (data.image_size={size} model.patch_size={patch})",
        f"  mean {joined(data['mean'])}, standard deviation {joined(data['std'])} "
        "(data.mean, data.std)",
    ]


def looked_at_texts(splits: TextSplits, tree: dict[str, Any]) -> list[str]:
    """Complete `tree` by what texts show; return lines about it."""
    data = tree["data"]
    column = splits.sample_column
    if data["text_column"] is None and splits.reader.names_in_first_line:
        warn_of_sentence(column, data["path"])
    data["text_column"] = column
    lines = complete_classes(splits, data) if splits.has_classes else []
    texts = splits.split_texts("train")
    if data["max_length"] is None:
        data["max_length"] = usual_length(texts)
    if data["vocab_size"] is None:
        data["vocab_size"] = vocabulary(texts)
    empty = sum(splits.count_empty(split) for split in splits.reader.splits)
    return [
        *lines,
        *([f"  {empty:,} empty texts are left out (data.drop_empty)"] if empty else []),
        f"  texts: column {data['text_column']} (data.text_column), up to {data['max_length']} "
        f"tokens (data.max_length) out of at most {data['vocab_size']} (data.vocab_size)",
    ]


def warn_of_sentence(column: str, path: str) -> None:
    """Warn of a column whose name has as many words as a text."""
    if len(column.split()) >= WORDS:
        warn(
            f"the first line of {shown(path)} is taken for the names of the columns, so "
            f"{shortened([column])!r} is no text; if it is one, put a line of names above it, "
            "such as text,label"
        )


def complete_classes(splits: OwnSplits, data: dict[str, Any]) -> list[str]:
    """Complete the keys of the classes; return a line about them."""
    names = splits.names
    assert names is not None
    for split in splits.reader.splits:
        splits.labels(split)  # raises UserError if a class is not among those of the training split
    data["label_column"], data["num_classes"] = splits.label_column, len(names)
    where = "folders" if splits.reader.source.endswith(FOLDER) else f"column {splits.label_column}"
    return [f"  classes: {len(names)}, {shortened(names)} ({where}; data.label_column)"]


def split_lines(splits: OwnSplits, data: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """Return lines that say where the data is, and how many rows each split has."""
    words = []
    for split in SPLIT_WORDS:
        key = "data.val_fraction" if split == "validation" else "data.test_fraction"
        fraction = data[key.removeprefix("data.")]
        held_out = "" if split in splits.reader.splits else f" (held out, {key}={fraction:g})"
        if split in counts:
            words.append(f"{counts[split]:,} {split}{held_out}")
    limited = "" if data["limit"] is None else f"; a subset, data.limit={data['limit']}"
    place = shown(data["path"]) if Path(data["path"]).is_absolute() else data["path"]
    return [
        f"Data: {data['name']}, {splits.reader.source} at {place}",
        f"  {splits.kind}: {', '.join(words)}{limited}",
    ]


def joined(numbers: list[float]) -> str:
    """List numbers."""
    return ", ".join(f"{number:g}" for number in numbers)
