"""Data module of own texts."""

from pathlib import Path
from typing import Any

from asap_exp.core.config import OwnTextDataConfig
from asap_exp.data.own.module import OwnDataModule
from asap_exp.data.own.text_splits import TextSplits
from asap_exp.data.raw_texts import RawTexts
from asap_exp.data.text import TextDataModule


class OwnTextDataModule(OwnDataModule, TextDataModule):
    """Own texts, for classification or masked language modelling."""

    config: OwnTextDataConfig
    own: TextSplits

    def __init__(self, config: OwnTextDataConfig, *, folder: Path | None, **options: Any) -> None:
        super().__init__(config, folder=folder, **options)
        self.own = TextSplits(config, self.dataset.trained_names)
        self.trained = folder is not None

    def whole(self, split: str) -> RawTexts:
        self.own_rows(split)
        where, numbers = self.own.whole(split)
        texts = self.own.texts(where)
        return RawTexts(
            [texts[number] for number in numbers],
            self.own.labels(where)[numbers].tolist(),
            self.own.reader.source,
            self.own.names,
        )
