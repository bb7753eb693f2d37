"""The YAML files of `conf/`: where they lie and what they offer; neither Hydra nor PyTorch needed.

Each stage has a folder with its own file and its groups. `common` holds the groups of several.
"""

from functools import cache
from pathlib import Path
from typing import Any

from asap_exp.core.errors import UserError

COMMON = "common"


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed package, else beside `src/`."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder conf/ was not found in {package}; is the installation complete?")


def group_folder(stage: str, group: str) -> Path | None:
    """The folder of a group of the stage's own or of `common`; None if there is no such group."""
    for parent in (stage, COMMON):
        folder = conf_dir() / parent / group
        if folder.is_dir():
            return folder
    return None


def options(folder: Path) -> list[str]:
    """The names of a group's files."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def tasks() -> list[str]:
    return options(conf_dir() / "train" / "task")


@cache
def attentions() -> dict[str, dict[str, Any]]:
    """By name of an attention, its options with their usual values.

    A file without a name changes the values of another one.
    """
    from omegaconf import OmegaConf  # half of what `--help` takes, which does not need it

    folder = conf_dir() / "train" / "attention"
    files = (OmegaConf.load(file) for file in folder.glob("*.yaml"))
    trees: list[Any] = [OmegaConf.to_container(file) for file in files]
    found = {tree.pop("name"): tree for tree in trees if "name" in tree}
    return {name: found[name] for name in sorted(found)}
