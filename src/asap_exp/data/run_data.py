"""Data of a finished run, from wherever it is stored today."""

from dataclasses import replace

import torch

from asap_exp.core.config import DataConfig, MovedData, OwnDataConfig
from asap_exp.core.errors import UserError
from asap_exp.core.runs import Run
from asap_exp.data.build import build_data
from asap_exp.data.module import TaskDataModule

CALIBRATION_SPLIT = "train"


def run_data(run: Run, moved: MovedData, batch_size: int, device: torch.device) -> TaskDataModule:
    """Build the data module of `run`; `moved` overrides its saved folders."""
    saved = run.config.data
    found = replace(saved, root=moved.root or saved.root, cache=moved.cache or saved.cache)
    if moved.path is not None:
        if not isinstance(found, OwnDataConfig):
            raise UserError(
                f"data.path={moved.path} is for a run on your own data, and {run.path} was trained "
                f"on {saved.name}; set data.root=FOLDER",
                key="data.path",
                value=moved.path,
            )
        found = replace(found, path=moved.path)
    return build_data(
        found, batch_size=batch_size, seed=run.config.seed, device=device, folder=run.path
    )


def check_same_data(data: TaskDataModule, run: Run) -> None:
    """Raise UserError unless training samples and their order are those `run` was trained on."""
    now, then = data.identity["train_sha256"], run.manifest.data["train_sha256"]
    if now != then:
        raise UserError(
            f"the training {data.sample_name} of {data.config.name} found now "
            f"({data.identity['source']}, SHA-256 {str(now)[:8]}...) are not those that {run.path} "
            f"was trained on ({run.manifest.data['source']}, {str(then)[:8]}...); set "
            f"{place_key(data.config)} to where the original data is"
        )


def place_key(config: DataConfig) -> str:
    """Return the setting that says where the data is."""
    return "data.path=PLACE" if isinstance(config, OwnDataConfig) else "data.root=FOLDER"
