"""Targets of texts per objective: the predicted classes or tokens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from asap_exp.core.config import TextDataConfig
from asap_exp.core.errors import UserError
from asap_exp.data.catalog import TextDataset
from asap_exp.data.masking import DynamicMasking, WordDropout, with_fixed_masks
from asap_exp.data.tokens import Texts, TokenBatch, with_own_tokens

Transform = Callable[[TokenBatch, Tensor, int], tuple[TokenBatch, Tensor]]


class Targets(Protocol):
    """Targets of one objective for texts."""

    dataset: TextDataset
    num_classes: int

    def __init__(self, config: TextDataConfig, dataset: TextDataset) -> None:
        """Set up the targets; raise UserError if the data set has none of this kind."""

    def arranged(self, rows: Texts, samples: Texts) -> Texts:
        """Prepare `samples`, which were made of the `rows` of a split."""

    def training_transform(self, entries: int) -> Transform:
        """Return the transform of training batches; `entries` is the number of token ids."""

    def fixed(self, samples: Texts, entries: int) -> Texts:
        """Return the samples with targets that are the same in every pass."""


class ClassTargets:
    """Targets of classification: a class per text."""

    def __init__(self, config: TextDataConfig, dataset: TextDataset) -> None:
        self.config, self.dataset = config, dataset
        if not dataset.num_classes:
            raise UserError(
                f"data.objective={config.objective}, but the texts of {config.name} have no "
                "classes; set data.objective=mlm"
            )
        self.num_classes = dataset.num_classes

    def arranged(self, rows: Texts, samples: Texts) -> Texts:
        return samples

    def training_transform(self, entries: int) -> Transform:
        return WordDropout(self.config.mask_share)

    def fixed(self, samples: Texts, entries: int) -> Texts:
        return samples


class MaskedTokenTargets:
    """Targets of a masked language model: a share of the tokens; labels are not read."""

    def __init__(self, config: TextDataConfig, dataset: TextDataset) -> None:
        self.config, self.dataset = config, replace(dataset, labels_read=False)
        self.num_classes = config.vocab_size

    def arranged(self, rows: Texts, samples: Texts) -> Texts:
        if not len(rows.ids):
            raise UserError(
                f"data.objective=mlm has nothing to predict: all {rows.rows} texts of a split of "
                f"{self.config.name} are empty; choose other data"
            )
        return with_own_tokens(samples)

    def training_transform(self, entries: int) -> Transform:
        return DynamicMasking(self.config.mask_share, entries)

    def fixed(self, samples: Texts, entries: int) -> Texts:
        return with_fixed_masks(
            samples, self.config.mask_share, entries, seed=self.config.mask_seed
        )


TARGETS: dict[str, type[Targets]] = {
    "classification": ClassTargets,
    "mlm": MaskedTokenTargets,
}
"""Targets by name of the objective."""
