"""What the command lines have in common."""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from asap_exp.composing import check_override_keys, conf_dir, parse
from asap_exp.errors import UserError
from asap_exp.mishaps import explained


def main(stage: str, schema: type, run: Callable[[Any], object]) -> None:
    """`python -m asap_exp.STAGE OVERRIDES`: composes, checks, runs; a UserError is a sentence."""
    # Figures are files here. Lightning imports matplotlib, which refuses the backend of a notebook
    # that this environment does not know.
    os.environ["MPLBACKEND"] = "Agg"
    failures: list[UserError] = []

    @hydra.main(config_path=str(conf_dir()), config_name=stage, version_base="1.3")
    def application(config: DictConfig) -> None:
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            print(f"\n== job {job.job.num}: {' '.join(job.overrides.task)}", flush=True)
        try:
            run(parse(config, schema))
        except Exception as error:
            sentence = explained(error, stage)
            if sentence is None:
                raise
            print(f"error: {sentence}", file=sys.stderr)
            failures.append(sentence)  # the other jobs of a sweep go on

    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(stage))
        return
    try:
        # Hydra itself explains an override that it cannot parse.
        with contextlib.suppress(HydraException):
            check_override_keys(sys.argv[1:], schema)
    except UserError as error:
        fail(error)
    application()
    if failures:
        sys.exit(2)


def help_text(stage: str) -> str:
    """The stage's own configuration file, and the groups that it names with their options."""
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


def fail(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
