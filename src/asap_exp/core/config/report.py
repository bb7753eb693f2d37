"""The configuration of the stage `report`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from asap_exp.core.config.fields import FOLDER, PATH, one_of
from asap_exp.core.config.shared import PathsConfig, TaskConfig


@dataclass
class ReportConfig:
    out: Annotated[str | None, FOLDER]
    published: Annotated[str | None, PATH]
    figures: Annotated[str, one_of("png", "svg", "pdf")]
    run: Annotated[str | None, PATH]
    paths: PathsConfig
    task: TaskConfig = field(default_factory=TaskConfig)
    check: bool = False

    @property
    def folder(self) -> Path:
        """Folder that the report is written to."""
        return self.paths.report if self.out is None else Path(self.out)
