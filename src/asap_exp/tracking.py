"""wandb where it was chosen, and never in the way: offline unless the user set a key."""

import importlib.util
import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asap_exp.config import LoggerConfig
from asap_exp.errors import UserError

INIT_TIMEOUT_SECONDS = 20


def wandb_mode() -> str:
    """What WANDB_MODE says; else online where a key is set, offline otherwise."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    return "online" if os.environ.get("WANDB_API_KEY") or has_netrc_key() else "offline"


def has_netrc_key() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def require_wandb() -> None:
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            "wandb was chosen as a logger but is not installed; install it, or choose logger=csv"
        )


def wandb_settings(
    logger: LoggerConfig, *, folder: Path, group: str, job_type: str, tags: list[str]
) -> dict[str, Any]:
    """Arguments of wandb.init that every stage shares; the stages of one run share a group."""
    require_wandb()
    os.environ.setdefault("WANDB_INIT_TIMEOUT", str(INIT_TIMEOUT_SECONDS))
    os.environ.setdefault("WANDB_SILENT", "true")
    return {
        "project": logger.project,
        "entity": logger.entity,
        "dir": str(folder),
        "group": group,
        "job_type": job_type,
        "name": f"{group}-{job_type}",
        "tags": [*logger.tags, *tags],
        "mode": wandb_mode(),
    }


@contextmanager
def wandb_run(
    logger: LoggerConfig,
    config: dict[str, Any],
    *,
    folder: Path,
    group: str,
    job_type: str,
    tags: list[str],
) -> Iterator[Any]:
    """A wandb run for a stage without a Lightning trainer; None where wandb was not chosen."""
    if not logger.wandb:
        yield None
        return
    settings = wandb_settings(logger, folder=folder, group=group, job_type=job_type, tags=tags)
    import wandb

    with wandb.init(config=config, **settings) as run:
        yield run
