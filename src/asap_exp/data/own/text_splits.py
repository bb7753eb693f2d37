"""Rows of the splits of own texts."""

import numpy as np

from asap_exp.core.config import OwnTextDataConfig
from asap_exp.core.config.own_data import OwnTextRequest
from asap_exp.core.errors import UserError
from asap_exp.core.objectives import OBJECTIVES
from asap_exp.data.catalog import TextDataset
from asap_exp.data.labels import Names
from asap_exp.data.own.splits import OwnSplits
from asap_exp.data.raw_texts import part_texts

TextConfig = OwnTextRequest | OwnTextDataConfig


class TextSplits(OwnSplits):
    """Own texts, with empty ones left out or refused."""

    kind = "texts"
    config: TextConfig

    def __init__(self, config: TextConfig, trained_names: Names = None) -> None:
        super().__init__(config, trained_names)
        self._texts: dict[str, list[str]] = {}

    @property
    def has_classes(self) -> bool:
        return not OBJECTIVES[self.config.objective].of_tokens

    @property
    def given_column(self) -> str | None:
        return self.config.text_column

    def count_empty(self, where: str) -> int:
        """Return the number of texts that are left out of a split that the data has."""
        return len(self.texts(where)) - len(self.usable(where))

    def split_texts(self, split: str) -> list[str]:
        """Return the texts of a split."""
        where, numbers = self.rows(split)
        texts = self.texts(where)
        return [texts[number] for number in numbers]

    def texts(self, where: str) -> list[str]:
        """Return all texts of a split that the data has."""
        if where not in self._texts:
            column = self.sample_column
            self.reader.use_as_text(column)
            dataset = TextDataset(name=self.config.name, rows={}, num_classes=0, text_column=column)
            parts = self.reader.read(where, [column])
            self._texts[where] = [text for part in parts for text in part_texts(part, dataset)]
        return self._texts[where]

    def _find_usable(self, where: str) -> np.ndarray:
        texts = self.texts(where)
        filled = np.array([bool(text.strip()) for text in texts], dtype=bool)
        empty = np.flatnonzero(~filled)
        if len(empty) and not self.config.drop_empty:
            row = int(empty[0])
            raise UserError(
                f"column {self.sample_column} of {self.config.path} has {len(empty):,} "
                f"empty texts among {len(texts):,} of the split {where}, the first in row {row} "
                "(counted from 0); leave them out with data.drop_empty=true, or choose another "
                "column with data.text_column=NAME"
            )
        if len(empty) == len(texts):
            raise UserError(
                f"the split {where} of {self.config.path} has no text that is not empty; choose "
                "another column with data.text_column=NAME"
            )
        return np.flatnonzero(filled)
