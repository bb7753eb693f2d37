"""The LightningDataModule of every image task."""

import hashlib

import lightning as L
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torchvision.transforms import v2

from asap_exp.config import DataConfig
from asap_exp.data.augment import EvaluationTransform, TrainingTransform
from asap_exp.data.catalog import image_dataset
from asap_exp.data.loader import DeviceLoader
from asap_exp.data.sources import Images, fingerprint, load_images
from asap_exp.errors import UserError


class ImageDataModule(L.LightningDataModule):
    """Training, validation, calibration and test images, held as uint8 on `device`.

    The validation rows are carved out of the training split by class, with `config.split_seed`.
    Only `test_dataloader` loads the test split.
    """

    def __init__(
        self, config: DataConfig, *, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.config, self.batch_size, self.seed = config, batch_size, seed
        self.device = torch.device(device)
        self.dataset = image_dataset(config.name)
        self._splits: dict[str, Images] = {}
        self.identity: dict[str, object] = {"name": config.name, "train_on": config.train_on}

    def setup(self, stage: str | None = None) -> None:
        """Loads the training split and carves the validation rows; a second call does nothing."""
        if "train" in self._splits:
            return
        images = self._load("train")
        labels = images.labels.cpu().numpy()
        classes = self.dataset.num_classes
        if int(self.config.val_fraction * len(labels)) < classes:
            raise UserError(
                f"data.val_fraction={self.config.val_fraction} of {len(labels)} rows leaves fewer "
                f"validation images than the {classes} classes; choose a larger fraction"
            )
        train_rows, val_rows = train_test_split(
            np.arange(len(labels)),
            test_size=self.config.val_fraction,
            stratify=labels,
            random_state=self.config.split_seed,
        )
        train_rows, val_rows = np.sort(train_rows), np.sort(val_rows)
        self._splits["val"] = rows_of(images, val_rows)
        self._splits["unaugmented_train"] = rows_of(images, train_rows)
        whole = self.config.train_on == "train+val"
        self._splits["train"] = images if whole else self._splits["unaugmented_train"]
        self.identity |= {
            "source": images.source,
            "train_sha256": fingerprint(images),
            "train_rows": len(self._splits["train"].labels),
            "train_split_rows": len(labels),
            "train_split_rows_in_all": self.dataset.rows["train"],
            "val_rows": len(val_rows),
            "val_rows_sha256": hashlib.sha256(val_rows.astype(np.int64).tobytes()).hexdigest(),
        }

    def train_dataloader(self) -> DeviceLoader:
        return DeviceLoader(
            self._splits["train"],
            self.batch_size,
            TrainingTransform(self.dataset, self.config.augment).to(self.device),
            seed=self.seed,
            epoch=lambda: self.trainer.current_epoch if self.trainer else 0,
        )

    def val_dataloader(self) -> DeviceLoader:
        return self._plain_loader(self._splits["val"])

    def test_dataloader(self, max_rows: int | None = None) -> DeviceLoader:
        """The test split, or its first `max_rows` rows."""
        images = self._load("test")
        self.identity |= {
            "test_sha256": fingerprint(images),
            "test_rows": min(len(images.labels), max_rows or len(images.labels)),
            "test_rows_in_all": self.dataset.rows["test"],
        }
        loader = self._plain_loader(images)
        return loader if max_rows is None else loader.first(max_rows)

    def calibration_dataloaders(
        self, *, samples: int, holdout: int, batch_size: int, seed: int
    ) -> tuple[DeviceLoader, DeviceLoader]:
        """Training images to fit on, at most `samples` of them, and `holdout` others.

        Unaugmented, drawn with `seed`; the validation images are not among them.
        """
        images = self._splits["unaugmented_train"]
        rows = len(images.labels)
        if holdout >= rows:
            raise UserError(
                f"calibration.holdout={holdout} leaves nothing to fit on: {self.config.name} has "
                f"{rows} training images; choose fewer"
            )
        order = np.random.default_rng(seed).permutation(rows)
        transform = EvaluationTransform(self.dataset).to(self.device)
        parts = order[holdout : holdout + samples], order[:holdout]
        fit, held_out = (
            DeviceLoader(rows_of(images, np.sort(part)), batch_size, transform) for part in parts
        )
        return fit, held_out

    def _plain_loader(self, images: Images) -> DeviceLoader:
        transform = EvaluationTransform(self.dataset).to(self.device)
        return DeviceLoader(images, self.batch_size, transform)

    def _load(self, split: str) -> Images:
        images = load_images(self.dataset, split, self.config.root, self.config.cache)
        pixels, size = images.pixels, self.config.image_size
        if size != self.dataset.size:
            pixels = v2.functional.resize(pixels, [size, size], antialias=True)
        return Images(pixels.to(self.device), images.labels.to(self.device), images.source)


def rows_of(images: Images, rows: np.ndarray) -> Images:
    index = torch.from_numpy(rows).to(images.pixels.device)
    return Images(images.pixels[index], images.labels[index], images.source)
