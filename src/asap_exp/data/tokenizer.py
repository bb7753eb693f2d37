"""Byte-level BPE tokenizer trained on the training split; no text holds an unknown token."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from asap_exp.core.errors import UserError
from asap_exp.core.files import write_text
from asap_exp.data.cache import read_cached, write_cached
from asap_exp.data.run_files import repair
from asap_exp.data.tokens import SPECIAL_TOKENS, Texts, offsets_of

FILE = "tokenizer.json"
BATCH = 1000
"""Texts encoded at once."""
LONGEST_WORD = 1000
"""Bytes per piece of a longer word: the trainer's time grows with the square of a word's length."""


def train_tokenizer(texts: Sequence[str], vocab_size: int, *, lowercase: bool) -> Tokenizer:
    """Train a tokenizer with at most `vocab_size` entries, including the special tokens.

    There are fewer entries if the texts do not yield more.
    """
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
    enormous = any(map(re.compile(rf"\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}").search, texts))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pieces]) if enormous else words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - SPECIAL_TOKENS,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = words
    return tokenizer


def cached_tokenizer(
    texts: Sequence[str], texts_sha256: str, cache: Path, vocab_size: int, *, lowercase: bool
) -> Tokenizer:
    """Return the tokenizer of `texts`, from the cache if it holds one for `texts_sha256`."""
    made_of = {
        "texts": texts_sha256,
        "vocab_size": vocab_size,
        "lowercase": lowercase,
        "tokenizers": importlib.metadata.version("tokenizers"),
    }
    file = cache / "tokenizers" / f"{content_key(made_of)}.json"
    if (content := read_cached(file)) is not None:
        try:
            return Tokenizer.from_str(content.decode())
        except Exception as error:
            raise UserError(
                f"{file} in the cache is not a tokenizer ({error}); remove it to train it again"
            ) from error
    tokenizer = train_tokenizer(texts, vocab_size, lowercase=lowercase)
    write_cached(file, tokenizer.to_str().encode())
    return tokenizer


def content_key(made_of: dict[str, object]) -> str:
    """Return a file name derived from everything that `made_of` lists."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def save_tokenizer(file: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer to a run directory."""
    write_text(file, tokenizer.to_str())


def load_tokenizer(file: Path) -> Tokenizer:
    """Return the tokenizer of a run directory; raise UserError if it is missing or damaged."""
    if not file.is_file():
        raise UserError(
            f"{file}, the tokenizer that the run was trained with, is missing; "
            f"{repair(file.parent)}"
        )
    try:
        return Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:
        raise UserError(
            f"{file} is damaged: it is not a tokenizer ({error}); {repair(file.parent)}"
        ) from error


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the complete tokenizer."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def encode(tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[int], source: str) -> Texts:
    """Encode every text without special tokens; an empty text has no tokens."""
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + BATCH])):
            ids.append(np.asarray(encoding.ids, dtype=np.int32))
            lengths.append(len(encoding.ids))
    flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
    return Texts(
        torch.from_numpy(flat + SPECIAL_TOKENS),
        torch.from_numpy(offsets_of(np.asarray(lengths, dtype=np.int64))),
        torch.tensor(labels, dtype=torch.int64),
        source,
    )


def cached_encoding(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Sequence[int],
    source: str,
    content: str,
    cache: Path,
) -> Texts:
    """Return `encode` of the texts, computed once per content and tokenizer."""
    key = content_key({"texts": content, "tokenizer": tokenizer_hash(tokenizer)})
    file = cache / "tokens" / f"{key}.safetensors"
    if (tensors := read_cached(file)) is not None:
        return Texts(**load(tensors), source=source)
    encoded = encode(tokenizer, texts, labels, source)
    made = {"ids": encoded.ids, "offsets": encoded.offsets, "labels": encoded.labels}
    write_cached(file, save(made))
    return encoded
