"""Generated sentences that reveal their class, in the schema of each text data set."""

import random
from pathlib import Path

from asap_exp.data.catalog import TEXT_DATASETS, TextDataset
from tests.data.parquet import write_texts

SUBJECTS = ("The baker", "A small boat", "Our neighbour", "The old clock", "Every gardener")
VERBS = ("finds", "carries", "paints", "measures", "remembers", "repairs")
OBJECTS = ("a lantern", "the bridge", "two letters", "some apples", "a wooden chair")
PLACES = ("near the river", "before noon", "without a word", "in the rain", "on the hill")


def sentence(draw: random.Random) -> str:
    parts = (draw.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, PLACES))
    return " ".join(parts) + "."


def make_texts(rows: int, classes: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return texts of one to eight sentences, some naming the class, and cyclic labels."""
    draw = random.Random(seed)
    texts, labels = [], []
    for row in range(rows):
        label = row % max(classes, 1)
        sentences = [sentence(draw) for _ in range(draw.randint(1, 8))]
        sentences.insert(draw.randint(0, len(sentences)), f"It is of kind{label} kind{label}.")
        texts.append(" ".join(sentences))
        labels.append(label)
    return texts, labels


def make_folder(root: Path, dataset: TextDataset, train: int = 200, test: int = 40) -> None:
    """Write all splits of `dataset`, with fewer rows, to a local folder."""
    rows = {"train": train, "validation": test, "test": test}
    for number, split in enumerate(dataset.rows):
        texts, labels = make_texts(rows[split], dataset.num_classes, seed=number)
        if dataset.joined:
            texts = ["", " = A heading = \n", *(f" {text}\n" for text in texts)]
        write_texts(root / dataset.folders[-1] / f"{split}.parquet", dataset, texts, labels)


def text_root(root: Path, *names: str) -> Path:
    for name in names:
        make_folder(root, TEXT_DATASETS[name])
    return root
