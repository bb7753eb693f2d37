"""Size, colours and statistics of own images, from a sample of the training split."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asap_exp.core.console import progress
from asap_exp.data.image_decoding import (
    Content,
    contents,
    decoded_image,
    header,
    in_threads,
    named,
    sizes_words,
)
from asap_exp.data.own.readers import Reader
from asap_exp.data.own.sizes import usual_side
from asap_exp.data.own.splits import Rows

LOOKED_AT = 1000
"""Images that are looked at, evenly spread over the training rows."""
GREYS = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of PIL for grey images."""


@dataclass(frozen=True)
class Sampled:
    """Image file, and the place of its row for messages."""

    content: Content
    place: str


@dataclass(frozen=True)
class ImageFacts:
    """Facts about the sampled images; `side` is the shorter one of the most frequent size."""

    name: str
    files: Sequence[Sampled]
    channels: int
    side: int
    words: str

    def statistics(self, size: int) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel, of pixels between 0 and 1."""
        count, total, squares = 0, np.zeros(self.channels), np.zeros(self.channels)
        decoded = in_threads(lambda file: self._decoded(file, size), self.files)
        words = f"Looking at {len(self.files):,} images of {self.name}"
        for pixels in progress(decoded, words, len(self.files), size=lambda _: 1):
            values = pixels.reshape(self.channels, -1) / 255
            count += values.shape[1]
            total += values.sum(axis=1)
            squares += (values**2).sum(axis=1)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        # A channel without contrast would be divided by 0.
        return [round(float(x), 4) for x in mean], [max(round(float(x), 4), 1e-3) for x in std]

    def _decoded(self, file: Sampled, size: int) -> np.ndarray:
        with named(self.name, file.place):
            return decoded_image(file.content, self.channels, size)


def sample(reader: Reader, rows: Rows, column: str) -> list[Sampled]:
    """Return the files of up to `LOOKED_AT` images, evenly spread over the rows."""
    numbers = rows.numbers
    if len(numbers) > LOOKED_AT:
        numbers = numbers[np.linspace(0, len(numbers) - 1, LOOKED_AT).astype(np.int64)]
    return [
        Sampled(content, part.place(row))
        for part in reader.read(rows.where, [column], numbers)
        for row, content in enumerate(contents(part, column))
    ]


def image_facts(files: Sequence[Sampled], name: str, channels: int | None) -> ImageFacts:
    """Return the facts about images; raise UserError that names the first one that is unusable."""
    sizes: Counter[tuple[int, int]] = Counter()
    grey = True
    for file in files:
        with named(name, file.place):
            size, mode = header(file.content)
        sizes[size] += 1
        grey = grey and mode in GREYS
    colours = "grey" if grey else "in colour"
    words = f"{colours}, {sizes_words(sizes)}, of {len(files):,} looked at"
    return ImageFacts(
        name, files, channels or (1 if grey else 3), usual_side(sizes.elements()), words
    )
