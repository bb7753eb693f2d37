"""Data sets as LightningDataModules; importing the package touches no network."""

from asap_exp.data.images import ImageDataModule

__all__ = ["ImageDataModule"]
