"""The configuration of the stage `report`."""

from dataclasses import dataclass, field
from typing import Annotated

from asap_exp.core.config.fields import PATH
from asap_exp.core.config.shared import PathsConfig, TaskConfig


@dataclass
class ReportConfig:
    out: Annotated[str, PATH]
    run: Annotated[str | None, PATH]
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)
