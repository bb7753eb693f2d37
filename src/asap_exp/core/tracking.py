"""wandb tracking: optional, and offline unless the user has set a key."""

import configparser
import importlib.util
import netrc
import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from asap_exp.core.config import LoggerConfig
from asap_exp.core.console import say, shown
from asap_exp.core.errors import UserError, check_choice

INIT_TIMEOUT_SECONDS = 20
"""Seconds that a stage waits for wandb's server."""
REACH_SECONDS = 5
"""Seconds that a check waits for it."""
FLUSH_SECONDS = 1
"""Interval at which wandb writes its file: the most that a killed process can lose."""
EARLIER = "earlier"
"""Folder of the offline files of attempts that a later one continues."""
OWN_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Old and new name of wandb's own server."""
MODES = {
    "online": "online",
    "offline": "offline",
    "disabled": "disabled",
    "shared": "shared",
    "run": "online",  # wandb's earlier names
    "dryrun": "offline",
}


def wandb_mode() -> str:
    """Return the mode of WANDB_MODE, else of wandb's settings files; else online if a key is set.

    Without a key the mode is offline. The settings are what `wandb offline` and `wandb disabled`
    write.
    """
    if chosen := os.environ.get("WANDB_MODE"):
        return known_mode("WANDB_MODE", chosen)
    for file in settings_files():
        if chosen := own_settings(file).get("mode"):
            return known_mode(f"mode in {file}", chosen)
    return "online" if has_key() else "offline"


def known_mode(key: str, chosen: str) -> str:
    """Return wandb's name of the mode, or raise UserError with the allowed ones."""
    check_choice(key, chosen, tuple(MODES))
    return MODES[chosen]


def settings_files() -> list[Path]:
    """Return wandb's settings files: this folder's, which takes precedence, and the user's."""
    here = Path(os.path.expanduser(os.environ.get("WANDB_DIR") or "."))
    folder = ".wandb" if (here / ".wandb").exists() else "wandb"
    user = os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    return [here / folder / "settings", Path(user) / "settings"]


def own_settings(file: Path) -> Mapping[str, str]:
    """Return the settings in `file`; empty if missing or unreadable, as wandb itself warns."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(file)
    except (OSError, ValueError, configparser.Error):
        return {}
    return parser["default"] if parser.has_section("default") else {}


def has_key() -> bool:
    """Return True if there is a key for the server, in the environment or in a file."""
    keys = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    return any(map(os.environ.get, keys)) or has_netrc_key()


def server_url() -> str | None:
    """Return the address of a server of one's own that was chosen, or None."""
    urls = [os.environ.get("WANDB_BASE_URL")]
    urls += [own_settings(file).get("base_url") for file in settings_files()]
    return next((url for url in urls if url), None)


def has_netrc_key() -> bool:
    """Return True if `wandb login` has stored a key for the server."""
    url = server_url()
    chosen = None if url is None else urlsplit(url).netloc
    hosts = OWN_HOSTS if chosen in (None, *OWN_HOSTS) else (chosen,)
    try:
        found = netrc.netrc(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc"))
    except (OSError, ValueError, netrc.NetrcParseError):
        return False
    return any(found.authenticators(host) is not None for host in hosts)


def require_wandb() -> None:
    """Raise UserError if wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            "wandb was chosen as a logger but is not installed; install it, or choose logger=csv"
        )


def reachable(logger: LoggerConfig) -> str:
    """Return in words how a stage would be tracked; UserError if wandb could not start.

    Of its server only a connection is asked: nothing is sent, and the key is not tried.
    """
    if not logger.wandb or (mode := wandb_mode()) == "disabled":
        return "off"
    require_wandb()
    check_settings(logger)
    if mode == "offline":
        return "offline"
    if not has_key():
        raise UserError(
            f"wandb has no key, and its mode is {mode}; run `wandb login`, set WANDB_API_KEY or "
            "WANDB_MODE=offline, or choose logger=csv"
        )
    server = urlsplit(server_url() or f"https://{OWN_HOSTS[0]}")
    proxy = None if proxy_bypass(server.hostname or "") else getproxies().get(server.scheme)
    first = server if proxy is None else urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = first.port or (80 if first.scheme == "http" else 443)
    try:
        socket.create_connection((first.hostname or "", port), timeout=REACH_SECONDS).close()
    except OSError as error:
        through = "" if proxy is None else f" through the proxy {first.hostname}:{port}"
        raise UserError(
            f"wandb's server {server.netloc} cannot be reached{through} "
            f"({error.strerror or error}); set WANDB_MODE=offline, or choose logger=csv"
        ) from error
    return f"{mode}, {server.netloc} answers"


def check_settings(logger: LoggerConfig) -> None:
    """Raise UserError if wandb refuses a setting, from the configuration or the environment."""
    set_defaults()
    try:
        import wandb

        settings = wandb.Settings()
        settings.update_from_env_vars(dict(os.environ))
        settings.update_from_dict(
            {"project": logger.project, "entity": logger.entity, "run_tags": tuple(logger.tags)}
        )
    except Exception as error:  # from wandb, or from validation of its settings
        raise not_started(error) from error


def not_started(error: Exception) -> UserError:
    """Return the error for a tracker that did not start, with what to do."""
    advice = (
        "give it a home directory with HOME=FOLDER"
        if "home directory" in str(error)
        else "set WANDB_MODE=offline if it cannot be reached, correct the setting that it "
        "names (logger.project, logger.entity, logger.tags or a WANDB_ variable)"
    )
    return UserError(f"wandb did not start ({reason(error)}); {advice}, or choose logger=csv")


@contextmanager
def wandb_run(
    logger: LoggerConfig,
    config: dict[str, Any],
    *,
    folder: Path,
    label: str,
    group: str,
    job_type: str,
    tags: list[str],
    run_id: str | None = None,
    part: str | None = None,
) -> Iterator[Any]:
    """Open a wandb run for one stage; yield None if wandb was not chosen or is disabled.

    Open it before the stage's manifest, so that a tracker that fails to start leaves no record
    behind. The stages of one training run share a `label`, the first part of their names, and those
    of all its seeds a `group`; `part` tells several of one stage apart by name. With `run_id`, a
    later attempt continues the run of that name.
    """
    if not logger.wandb or (mode := wandb_mode()) == "disabled":
        yield None
        return
    require_wandb()
    set_defaults()
    if run_id is not None and mode == "offline":
        set_aside(folder / "wandb", run_id)
    try:
        import wandb

        run = wandb.init(
            config=config,
            project=logger.project,
            entity=logger.entity,
            dir=str(folder),
            group=group,
            job_type=job_type,
            name="-".join(filter(None, (label, job_type, part))),
            tags=[*logger.tags, *tags],
            mode=mode,  # type: ignore[arg-type]
            id=run_id,
            resume="allow" if run_id is not None and mode == "online" else None,
        )
    except Exception as error:  # from wandb, from validation of its settings, or from the system
        raise not_started(error) from error
    status = 1
    try:
        yield run  # not `with run`, which prints the traceback of whatever ends it
        status = 0
    finally:
        run.finish(exit_code=status)
        if mode == "offline":
            place = shown(Path(run.dir).parent)  # RUN/wandb/offline-run-TIME-ID/files
            say(f"wandb, offline: {place}; upload it with: wandb sync {shlex.quote(place)}")


def set_aside(folder: Path, run_id: str) -> None:
    """Move the offline files of earlier attempts to `folder`/earlier, out of what is uploaded.

    Each upload of a run replaces the last one, and the file of the new attempt begins with the
    points of the earlier ones.
    """
    for found in sorted(folder.glob("offline-run-*")):
        if not any(found.glob(f"run-{run_id}.wandb")):
            continue
        (folder / EARLIER).mkdir(exist_ok=True)
        names = (found.name + "~" * times for times in count())
        found.rename(next(to for name in names if not (to := folder / EARLIER / name).exists()))


def require_tensorboard() -> None:
    """Raise UserError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "tensorboard was chosen as a logger but is not installed; install it with: "
            'pip install "asap_exp[tensorboard]", or choose logger=csv'
        )


def set_defaults() -> None:
    """Set variables of wandb that the user has not set; an empty one counts as not set.

    wandb itself refuses empty variables.
    """
    for name in [name for name, value in os.environ.items() if not value]:
        if name.startswith("WANDB_"):
            del os.environ[name]
    os.environ.setdefault("WANDB_INIT_TIMEOUT", str(INIT_TIMEOUT_SECONDS))
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", str(FLUSH_SECONDS))


def reason(error: Exception) -> str:
    """Return wandb's message in one line; for a refused setting, which one and why."""
    if hasattr(error, "errors"):
        checks = ((".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())
        return "; ".join(f"{setting}: {message}" for setting, message in checks)
    return " ".join(str(error).split()) or type(error).__name__
