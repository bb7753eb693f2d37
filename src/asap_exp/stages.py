"""What the command lines have in common."""

import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from asap_exp.composing import check_override_keys, conf_dir, parse
from asap_exp.errors import UserError


def main(stage: str, schema: type, run: Callable[[Any], object]) -> None:
    """`python -m asap_exp.STAGE OVERRIDES`: composes, checks, runs; a UserError is a sentence."""

    @hydra.main(config_path=str(conf_dir()), config_name=stage, version_base="1.3")
    def application(config: DictConfig) -> None:
        try:
            run(parse(config, schema))
        except UserError as error:
            fail(error)

    try:
        check_override_keys(sys.argv[1:], schema)
    except UserError as error:
        fail(error)
    except HydraException:
        pass  # Hydra explains an override that it cannot parse better than we could
    application()


def fail(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
