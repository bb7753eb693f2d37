"""Length of texts and size of their vocabulary, estimated before there is a tokenizer."""

from collections.abc import Sequence

import numpy as np

BYTES_PER_TOKEN = 4
SHARE = 0.9
"""Share of the texts that are not cut."""
STEP, SHORTEST, LONGEST = 32, 64, 512
"""Multiple and bounds of the length in tokens."""
WORDS_PER_ENTRY = 128
"""Words of training text per entry of the vocabulary."""
SMALLEST, LARGEST = 1024, 16384
"""Bounds of the vocabulary."""


def usual_length(texts: Sequence[str]) -> int:
    """Return a number of tokens that nine of ten texts do not exceed, at most `LONGEST`."""
    lengths = [len(text.encode()) for text in texts]
    usual = float(np.quantile(lengths, SHARE, method="lower"))
    tokens = usual / BYTES_PER_TOKEN + 1  # with the CLS token
    return int(min(max(-(-tokens // STEP) * STEP, SHORTEST), LONGEST))


def vocabulary(texts: Sequence[str]) -> int:
    """Return the power of two that is nearest to the number of words per `WORDS_PER_ENTRY`."""
    words = sum(len(text.split()) for text in texts)
    power = round(np.log2(max(words / WORDS_PER_ENTRY, 1)))
    return int(min(max(2**power, SMALLEST), LARGEST))
