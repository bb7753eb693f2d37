"""The run of a compiled map on wandb."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from asap_exp.core.runs import Run, public_config
from asap_exp.core.tracking import wandb_run
from asap_exp.distill.config import DistillConfig


def map_run(
    config: DistillConfig, run: Run, public: dict[str, Any], folder: Path
) -> AbstractContextManager[Any]:
    """Return the context of the run of a map of the teacher `run`, kept in `folder`."""
    return wandb_run(
        config.logger,
        {**public, "teacher_config": public_config(run.config)},
        folder=run.path,
        label=run.label,
        group=run.group,
        job_type="distill",
        part=folder.name,
        tags=[str(run.config.task.name), config.calibration.name],
    )
