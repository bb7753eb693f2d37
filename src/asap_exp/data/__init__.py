"""Data sets as LightningDataModules; importing the package touches no network."""

from asap_exp.data.build import build_data
from asap_exp.data.images import ImageDataModule
from asap_exp.data.module import TaskDataModule

__all__ = ["ImageDataModule", "TaskDataModule", "build_data"]
