"""What the command lines have in common."""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from asap_exp.core.errors import UserError
from asap_exp.core.interruption import Interrupted, interruptible


def main(stage: str, schema: type, run: Callable[[Any], object]) -> None:
    """`python -m asap_exp.STAGE OVERRIDES`: composes, checks, runs; exits with a status.

    0: done; 2: a UserError, printed as a sentence; 128 + SIGNAL: stopped by it. Of a sweep, that of
    its failed jobs, which are listed at the end.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(stage))
        return
    # Figures are files here. Lightning imports matplotlib, which refuses the backend of a notebook
    # that this environment does not know.
    os.environ["MPLBACKEND"] = "Agg"
    try:
        with interruptible(passed_on) as stop:
            try:
                status = application(stage, schema, run)
            except (Exception, SystemExit):
                stop.obey()  # it ended by a signal that a library made an error of
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
    """Whether workers of this sweep, if it has begun, have got the signal."""
    sweep = sys.modules.get("asap_exp.core.sweep")
    return sweep is not None and sweep.pass_on(number)


def application(stage: str, schema: type, run: Callable[[Any], object]) -> int:
    """The Hydra application; what it takes seconds to import is imported where a signal is met."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from asap_exp.core import sweep
    from asap_exp.core.composing import check_override_keys, conf_dir, parse

    # Hydra itself explains an override that it cannot parse.
    with contextlib.suppress(HydraException):
        check_override_keys(sys.argv[1:], schema)
    statuses: list[int] = []

    @hydra.main(config_path=str(conf_dir()), config_name=stage, version_base="1.3")
    def job(config: DictConfig) -> None:
        statuses.append(sweep.attempt(stage, lambda: run(parse(config, schema))))

    try:
        job()
    finally:
        ended = sweep.jobs()
        sweep.report_failures(ended)
    return sweep.exit_status(ended) or max(statuses, default=0)


def help_text(stage: str) -> str:
    """The stage's own configuration file, and the groups that it names with their options."""
    from asap_exp.core.composing import conf_dir

    folder = conf_dir()
    primary = (folder / f"{stage}.yaml").read_text(encoding="utf-8")
    # In its list of defaults, or in a comment as +GROUP=.
    named = set(re.findall(r"^  - (\w+):|\+(\w+)=", primary, flags=re.MULTILINE))
    groups: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/*.yaml")):
        if file.parent.name != "hydra" and file.parent.name in itertools.chain(*named):
            groups.setdefault(file.parent.name, []).append(file.stem)
    options = "\n".join(f"  {group}: {', '.join(names)}" for group, names in groups.items())
    return (
        f"python -m asap_exp.{stage} [KEY=VALUE ...] [-m KEY=A,B ...]\n\n"
        f"{primary}\n"
        f"# Groups and their options; each is a file in {folder} that explains its keys:\n"
        f"{options}\n\n"
        f"Show what a command would run with: --cfg job. Hydra's own flags: --hydra-help"
    )
