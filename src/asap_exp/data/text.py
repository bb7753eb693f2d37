"""LightningDataModule of the text tasks."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from asap_exp.core.config import TextDataConfig
from asap_exp.core.errors import UserError
from asap_exp.core.objectives import OBJECTIVES, Objective
from asap_exp.data.catalog import TextDataset
from asap_exp.data.describing import described_texts
from asap_exp.data.module import TaskDataModule
from asap_exp.data.raw_texts import POOLED_TEST_SHARE, RawTexts, check_texts, load_texts, pooled
from asap_exp.data.run_files import TOKENIZER_HASH, as_trained, recorded, repair
from asap_exp.data.sources import cache_dir
from asap_exp.data.subset import Limit
from asap_exp.data.targets import TARGETS
from asap_exp.data.text_loader import TextLoader
from asap_exp.data.tokenizer import (
    FILE,
    cached_encoding,
    cached_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
)
from asap_exp.data.tokens import SPECIAL_TOKENS, Texts, blocks, truncated


class TextDataModule(TaskDataModule[Texts]):
    """Texts as token ids, held on the device and assembled into batches there.

    The tokenizer comes from the run directory `folder` if given; otherwise it is trained on the
    training split.
    """

    config: TextDataConfig
    dataset: TextDataset

    def __init__(self, config: TextDataConfig, *, folder: Path | None, **options: Any) -> None:
        dataset = as_trained(described_texts(config), folder)
        self.targets = TARGETS[config.objective](config, dataset)
        self.dataset = self.targets.dataset
        super().__init__(config, self.dataset, **options)
        self.folder = folder
        self.sample_name = "blocks of text" if config.layout == "blocks" else "texts"
        self._raw: dict[str, RawTexts] = {}
        self.identity["split"] = config.split

    @property
    def rows_in_all(self) -> Mapping[str, int]:
        if self.config.split != "pooled":
            return super().rows_in_all
        pool = sum(self.dataset.rows.values())
        test = round(POOLED_TEST_SHARE * pool)
        return {"train": pool - test, "test": test}

    @property
    def num_classes(self) -> int:
        return self.targets.num_classes

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.config.objective]

    def labelled_texts(self) -> tuple[RawTexts, RawTexts] | None:
        return None if self.objective.of_tokens else (self.raw("train"), self.raw("test"))

    def raw(self, split: str) -> RawTexts:
        """Return a split as it is stored, or as drawn from the pool of both, within the limit."""
        if split not in self._raw:
            whole = self.whole(split)
            rows = self.limit.rows(np.asarray(whole.labels))
            self._raw[split] = whole if rows is None else whole.take(rows)
        return self._raw[split]

    def whole(self, split: str) -> RawTexts:
        """Return a split without a limit."""
        where = self.config.root, self.config.cache
        if self.config.split == "pooled":
            train, test = (load_texts(self.dataset, s, *where) for s in ("train", "test"))
            return pooled(train, test, split, seed=self.config.split_seed)
        return load_texts(self.dataset, split, *where)

    def samples_in_all(self, split: str) -> int:
        rows = super().samples_in_all(split)
        if self.config.layout != "blocks" or self.config.limit is None:
            return rows
        # The number of blocks depends on all texts. Of a catalogued split not all may be there.
        raw = self.whole(split)
        count = self.arranged(self._encoded(raw)).rows
        return count if len(raw.texts) == rows else max(count, rows)

    @property
    def limit(self) -> Limit:
        return super().limit._replace(one_text=self.dataset.joined)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer, or one trained on the training split (cached)."""
        if self.folder is not None:
            tokenizer = self._trained_tokenizer(self.folder)
        else:
            raw = self.raw("train")
            tokenizer = cached_tokenizer(
                raw.texts,
                raw.sha256,
                cache_dir(self.config.cache),
                self.config.vocab_size,
                lowercase=self.config.lowercase,
            )
        self.identity[TOKENIZER_HASH] = tokenizer_hash(tokenizer)
        return tokenizer

    def _trained_tokenizer(self, folder: Path) -> Tokenizer:
        tokenizer, expected = load_tokenizer(folder / FILE), recorded(folder, TOKENIZER_HASH)
        if expected not in (None, tokenizer_hash(tokenizer)):
            raise UserError(
                f"{folder / FILE} has changed: it is not the tokenizer that the run was trained "
                f"with, so its token ids mean other tokens; {repair(folder)}"
            )
        return tokenizer

    @property
    def entries(self) -> int:
        """Number of token ids, including the special ones: at most `vocab_size`."""
        return self.tokenizer.get_vocab_size() + SPECIAL_TOKENS

    def load(self, split: str) -> Texts:
        raw = self.raw(split)
        if split == "train":
            self.class_names = raw.names
        return self._encoded(raw)

    def _encoded(self, raw: RawTexts) -> Texts:
        cache = cache_dir(self.config.cache)
        return cached_encoding(self.tokenizer, raw.texts, raw.labels, raw.source, raw.sha256, cache)

    def check(self, split: str) -> None:
        check_texts(self.dataset, split, self.config.root, self.config.cache)

    def arranged(self, rows: Texts) -> Texts:
        if self.config.layout == "blocks":
            samples = blocks(rows, self.config.max_length, joined=self.dataset.joined)
        else:
            samples = truncated(rows, self.config.max_length, self.config.truncation)
        return self.targets.arranged(rows, samples)

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_tokenizer(folder / FILE, self.tokenizer)

    def changed_files(self, folder: Path, then: Mapping[str, Any]) -> list[str]:
        changed = super().changed_files(folder, then)
        try:
            now = tokenizer_hash(load_tokenizer(folder / FILE))
        except UserError:
            return [*changed, FILE]
        return changed if then.get(TOKENIZER_HASH) in (None, now) else [*changed, FILE]

    def training_loader(self, samples: Texts) -> TextLoader:
        return self._loader(
            samples,
            self.batch_size,
            transform=self.targets.training_transform(self.entries),
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
        )

    def plain_loader(self, samples: Texts, batch_size: int) -> TextLoader:
        return self._loader(self.targets.fixed(samples, self.entries), batch_size)

    def _loader(self, samples: Texts, batch_size: int, **options: Any) -> TextLoader:
        return TextLoader(
            samples.to(self.device),
            batch_size,
            max_length=self.config.max_length,
            length_multiple=self.config.length_multiple,
            max_tokens=self.config.batch_tokens,
            ranks=self.ranks,
            **options,
        )
