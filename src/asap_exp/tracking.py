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


@contextmanager
def wandb_run(
    logger: LoggerConfig,
    config: dict[str, Any],
    *,
    folder: Path,
    group: str,
    job_type: str,
    tags: list[str],
    run_id: str | None = None,
) -> Iterator[Any]:
    """A wandb run for one stage; None where wandb was not chosen.

    Open it before the stage's manifest, so that a tracker which does not start spoils no record.
    The stages of one training run share a `group`. With `run_id`, a later attempt continues the run
    of that name.
    """
    if not logger.wandb:
        yield None
        return
    require_wandb()
    os.environ.setdefault("WANDB_INIT_TIMEOUT", str(INIT_TIMEOUT_SECONDS))
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    mode = wandb_mode()
    try:
        run = wandb.init(
            config=config,
            project=logger.project,
            entity=logger.entity,
            dir=str(folder),
            group=group,
            job_type=job_type,
            name=f"{group}-{job_type}",
            tags=[*logger.tags, *tags],
            mode=mode,  # type: ignore[arg-type]
            id=run_id,
            resume="allow" if run_id is not None and mode == "online" else None,
        )
    except (wandb.Error, OSError, TimeoutError) as error:
        raise UserError(
            f"wandb did not start ({error}); set WANDB_MODE=offline, or choose logger=csv"
        ) from error
    with run:
        yield run
