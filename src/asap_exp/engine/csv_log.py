"""Lightning's CSV log, written so that a failure cannot lose earlier rows."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from asap_exp.core.errors import UserError
from asap_exp.core.files import unwritable, write_text


class CsvLog(CSVLogger):
    """CSV logger with a new file for every attempt at a run."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = Rows(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]


class Rows(ExperimentWriter):
    """Writer that appends rows; when a column is added, it replaces the whole file atomically."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir)
        self.written: list[dict[str, Any]] = []

    def save(self) -> None:
        """Write the pending rows; raise UserError if that fails or the run directory is gone."""
        if not self.metrics:
            return
        file = Path(self.metrics_file_path)
        if not file.parent.is_dir():
            raise UserError(
                f"{file.parent} is no longer there: the run directory was deleted or moved during "
                "training. Move it back, or start the same command again"
            )
        rows, self.metrics = self.metrics, []
        self.written += rows
        if set().union(*rows) <= set(self.metrics_keys):
            append(file, self.text(rows))
        else:
            self.metrics_keys = sorted(set(self.metrics_keys).union(*rows))
            write_text(file, self.text(self.written, header=True))

    def text(self, rows: list[dict[str, Any]], *, header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def append(file: Path, text: str) -> None:
    """Append `text` to `file`; raise UserError if that fails."""
    try:
        with file.open("a", newline="", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise unwritable(file, error) from error
