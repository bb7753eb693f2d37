"""Configuration shared by several stages: task, locations, logger, latency."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from asap_exp.core.config.fields import FOLDER, PATH, Count, Rounds
from asap_exp.core.errors import UserError, check_name

ONE_DEVICE = dict.fromkeys(
    ("devices", "num_nodes", "strategy", "trainer"),
    "train, distill and evaluate take several devices; this stage works on one, which accelerator "
    "names",
)
"""Keys of several devices that a benchmark lacks, and why."""

SEVERAL_DEVICES = {
    "strategy": "it is for training; every device here holds the whole model",
    "trainer": "use accelerator, devices and num_nodes",
}
"""Keys of several devices that are looked for in the wrong place."""


@dataclass
class TaskConfig:
    """Task, written `task: NAME` on a command line and in `conf/`.

    Saved configurations, manifests and the hashes of finished runs hold it as `task: {name: NAME}`.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("task", self.name)


@dataclass
class DataLocation:
    """Location of data sets and decoded copies; not part of a run's identity."""

    root: Annotated[str | None, PATH]
    cache: Annotated[str | None, FOLDER]


@dataclass
class MovedData(DataLocation):
    """Location of a teacher's data today; `path` is that of own data."""

    path: Annotated[str | None, PATH]


@dataclass
class LoggerConfig:
    wandb: bool
    project: str
    entity: str | None
    tags: list[str]
    # Configurations saved before these keys existed lack them.
    upload: bool = False
    tensorboard: bool = False


@dataclass
class PathsConfig:
    results: Annotated[str, FOLDER]

    @property
    def runs(self) -> Path:
        return Path(self.results) / "runs"

    @property
    def report(self) -> Path:
        """Folder of records, tables, figures and page of these runs."""
        return Path(self.results) / "report"


@dataclass
class LatencyConfig:
    batch_size: Count
    rounds: Rounds
    cuda_graph: bool | None = None

    def on(self, name: str, kind: str) -> "LatencyConfig":
        """Return these settings, whose key is `name`, for a device of this `kind`."""
        graphs = graphs_on(kind, self.cuda_graph, f"{name}.cuda_graph")
        return replace(self, cuda_graph=graphs)


def graphs_on(kind: str, wanted: bool | None, key: str) -> bool:
    """Return whether calls are timed as CUDA graphs on a device of this `kind`, "cuda" or "cpu".

    None, for the setting `key`, is yes on a GPU. Raises UserError if they are `wanted` elsewhere.
    """
    if wanted and kind != "cuda":
        raise UserError(f"{key}=true needs a GPU; set {key}=null, which takes them on a GPU alone")
    return kind == "cuda" if wanted is None else wanted
