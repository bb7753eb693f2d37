"""What data modules of own images and own texts share."""

from collections.abc import Mapping

from asap_exp.core.config import OwnImageDataConfig, OwnTextDataConfig
from asap_exp.core.errors import UserError
from asap_exp.data.module import TaskDataModule
from asap_exp.data.own.splits import OwnSplits, Rows


class OwnDataModule(TaskDataModule):
    """Data module whose rows come from `own`; `trained` if a model has been trained on them."""

    config: OwnImageDataConfig | OwnTextDataConfig
    own: OwnSplits
    trained: bool

    @property
    def rows_in_all(self) -> Mapping[str, int]:
        return self.own.rows_in_all()

    def own_rows(self, split: str) -> Rows:
        """Return the rows of a split, and set the class names.

        Raises UserError if the test rows are held out of training rows that have changed since the
        model was trained: it may have seen them.
        """
        config = self.config
        held_out = split == "test" and "test" not in self.own.reader.splits
        if held_out and self.trained and self.own.fingerprint != config.fingerprint:
            raise UserError(
                f"the data at {config.path} has changed since the model was trained, and its test "
                "rows are held out of the training split: the model may have seen them. Set "
                "data.path=PLACE to the data as it was, or give data with a test split"
            )
        if split == "train":
            self.class_names = self.own.names
        return self.own.rows(split)

    def check(self, split: str) -> None:
        self.own_rows(split)
