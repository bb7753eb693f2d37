"""The YAML files of `conf/`: their location and options. Needs neither Hydra nor PyTorch.

Each stage has a folder with its own file and its groups. `common` holds the groups that several
stages share. `own` is the user's folder of further files, given with `--config-dir`, whose
subfolders are groups of the stage. Installed packages may have folders of their own too.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from asap_exp.core import plugins
from asap_exp.core.errors import UserError

COMMON = "common"


@cache
def conf_dir() -> Path:
    """Return the folder of the YAML files: in an installed package, else next to `src/`."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder conf/ was not found in {package}; is the installation complete?")


def group_folders(stage: str, group: str, own: Path | None = None) -> list[Path]:
    """Return the folders with options of a group, in order of precedence; empty if it is none."""
    return [root / group for root in roots(stage, own) if (root / group).is_dir()]


def roots(stage: str, own: Path | None = None) -> list[Path]:
    """Return the folders whose subfolders are the groups of a stage, in order of precedence."""
    common = [conf_dir() / stage, conf_dir() / COMMON, *plugins.conf_folders(stage)]
    return common if own is None else [own, *common]


def search_path(stage: str) -> list[str]:
    """Return what Hydra searches beside the folder of the stage, if packages add to it."""
    folders = plugins.conf_folders(stage)
    return [f"file://{folder}" for folder in (conf_dir() / COMMON, *folders)] if folders else []


def options(*folders: Path) -> list[str]:
    """Return the names of a group's files."""
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def option_file(stage: str, group: str, option: str, own: Path | None = None) -> Path | None:
    """Return the file of an option of a group, or None."""
    files = (folder / f"{option}.yaml" for folder in group_folders(stage, group, own))
    return next((file for file in files if file.is_file()), None)


def tasks() -> list[str]:
    return options(*group_folders("train", "task"))


def own_data_tasks() -> list[str]:
    """Return the tasks of own data, which take `data.path`."""
    files = {task: option_file("train", "task", task) for task in tasks()}
    return [task for task, file in files.items() if file and "/data: own_" in file.read_text()]


@cache
def attention_names() -> frozenset[str]:
    """Return the names of the built-in attentions, which needs no OmegaConf."""
    files = (conf_dir() / "train" / "attention").glob("*.yaml")
    found = (re.search(r"^name: *(\w+)", file.read_text(), flags=re.MULTILINE) for file in files)
    return frozenset(match[1] for match in found if match)


@cache
def attentions() -> dict[str, dict[str, Any]]:
    """Return the options of each attention with their defaults, by the attention's name.

    Files without a name only change the values of another file and are skipped.
    """
    # Imported here, since it would double the time of `--help`, which does not need it.
    from omegaconf import OmegaConf

    folder = conf_dir() / "train" / "attention"
    files = (OmegaConf.load(file) for file in folder.glob("*.yaml"))
    trees: list[Any] = [OmegaConf.to_container(file) for file in files]
    found = {tree.pop("name"): tree for tree in trees if "name" in tree}
    return {name: found[name] for name in sorted(found)}
