"""Entry point shared by the command lines of all stages."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from asap_exp.core.conf_files import COMMON, conf_dir, options
from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted, interruptible


def main(stage: str, schema: type, run: Callable[[Any], object]) -> None:
    """Run `python -m asap_exp.STAGE OVERRIDES`: compose, check and run, then exit with a status.

    The status is 0 if done, 2 after a UserError, which is printed as a sentence, and 128 + SIGNAL
    if stopped by a signal. A sweep exits with the status of its failed jobs and lists them at the
    end.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(stage))
        return
    # Figures are written to files. Lightning imports matplotlib, which fails if MPLBACKEND names
    # a notebook's backend that is not installed here.
    os.environ["MPLBACKEND"] = "Agg"
    try:
        with interruptible(passed_on) as stop:
            try:
                status = application(stage, schema, run)
            except (Exception, SystemExit):
                stop.obey()  # a library may have turned the signal into an error
                raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except Interrupted as stop:
        print(f"error: {stop}; the same command goes on from what was saved", file=sys.stderr)
        status = stop.exit_status
    if status:
        sys.exit(status)


def passed_on(number: int) -> bool:
    """Return True if a sweep has begun and its workers have received the signal."""
    sweep = sys.modules.get("asap_exp.core.sweep")
    return sweep is not None and sweep.pass_on(number)


def application(stage: str, schema: type, run: Callable[[Any], object]) -> int:
    """Return the Hydra application; slow imports are delayed until signals are handled."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from asap_exp.core import sweep
    from asap_exp.core.composing import parse
    from asap_exp.core.overrides import check_overrides

    # Hydra itself explains an override that it cannot parse.
    with contextlib.suppress(HydraException):
        check_overrides(stage, sys.argv[1:], schema)
    statuses: list[int] = []

    @hydra.main(config_path=str(conf_dir() / stage), config_name=stage, version_base="1.3")
    def job(config: DictConfig) -> None:
        statuses.append(sweep.attempt(stage, lambda: run(parse(config, schema))))

    try:
        job()
    finally:
        ended = sweep.jobs()
        sweep.report_failures(ended)
    return sweep.exit_status(ended) or max(statuses, default=0)


def help_text(stage: str) -> str:
    """Return the stage's own configuration file, followed by its groups with their options."""
    folder = conf_dir()
    primary = (folder / stage / f"{stage}.yaml").read_text(encoding="utf-8")
    groups = {path.name: path for path in sorted((folder / stage).iterdir()) if path.is_dir()}
    shared = sorted(path for path in (folder / COMMON).iterdir() if path.name != "hydra")
    groups |= {path.name: path for path in shared if f"  - {path.name}:" in primary}
    lines = [f"  {group}: {', '.join(options(path))}" for group, path in groups.items()]
    listed = "\n".join(lines) if lines else "  none"
    return (
        f"python -m asap_exp.{stage} [KEY=VALUE ...] [-m KEY=A,B ...]\n\n"
        f"{primary}\n"
        f"# Groups and their options; each is a file below {folder} that explains its keys:\n"
        f"{listed}\n\n"
        f"Show what a command would run with: --cfg job. Hydra's own flags: --hydra-help"
    )
