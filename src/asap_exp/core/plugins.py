"""Attentions, calibration steps and YAML files of other packages.

A package is taken from where the user names it, `attention._module=PACKAGE.MODULE` on the command
line or `_module` in a YAML file that is composed, or from an installed distribution that declares
it as an entry point. A saved configuration names no module: loading it executes nothing of its own.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asap_exp.core.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

MODULE = "_module"
"""Key, below each of `KINDS`, of the module that registers an attention or a step."""

KINDS = {"attention": "asap_exp.attentions", "calibration": "asap_exp.calibration_steps"}
"""Groups of entry points, by the key of a configuration; each is named as what it registers."""

CONF = "asap_exp.conf"
"""Group of the entry points whose values are folders like conf/, written as packages."""

OWN = "asap_exp."

_followed: list[str] = []
"""Modules that the user has named in this process."""


# Modules that the user names


def follow(key: str, module: Any) -> None:
    """Import the module (or each of a list) that the user gave as `key`, so that it registers.

    It may be installed, on PYTHONPATH or in the current folder.
    """
    for name in module if isinstance(module, list) else [module]:
        if not (isinstance(name, str) and all(part.isidentifier() for part in name.split("."))):
            raise UserError(
                f"{key}={name} is not allowed; it must be the name of a module, for example "
                f"{key}=my_package.my_module",
                key=key,
                value=name,
            )
        if name not in _followed:
            imported(key, name)
            _followed.append(name)


def imported(key: str, name: str) -> None:
    """Import a module; raise UserError if it, or a module that it imports, does not exist."""
    search_current_folder()
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = "" if error.name and name.startswith(error.name) else f" (it needs {error.name})"
        raise UserError(
            f"{key}={name} cannot be imported{missing}; it must be installed, on PYTHONPATH or in "
            "the current folder",
            key=key,
            value=name,
        ) from error


def search_current_folder() -> None:
    """Let Python find modules in the current folder, after all other places."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def followed() -> tuple[str, ...]:
    """Return the modules that the user has named in this process, for its workers to follow."""
    return tuple(_followed)


# Installed packages


@cache
def installed(group: str) -> dict[str, "EntryPoint"]:
    """Return the entry points of a group by name; UserError if two packages have the same."""
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise UserError(
                f"two installed packages have an entry point {entry.name} of {group}: "
                f"{described(other)} and {described(entry)}; uninstall one of them"
            )
    return found


def described(entry: "EntryPoint") -> str:
    """Return the distribution and the module of an entry point."""
    name = "an unknown distribution" if entry.dist is None else entry.dist.name
    return f"{entry.value} of {name}"


def load(kind: str, name: str) -> bool:
    """Import the installed package that registers `name`; return False if there is none."""
    entry = installed(KINDS[kind]).get(name)
    if entry is None:
        return False
    try:
        entry.load()
    except Exception as error:
        raise UserError(
            f"{kind}={name} cannot be loaded from {described(entry)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return True


def conf_folders(stage: str) -> list[Path]:
    """Return the folders with YAML files of a stage in installed packages."""
    folders = [folder_of(entry) / stage for entry in installed(CONF).values()]
    return [folder for folder in folders if folder.is_dir()]


def folder_of(entry: "EntryPoint") -> Path:
    """Return the folder that an entry point names as a package; nothing is imported."""
    package, *below = entry.value.split(".")
    if entry.dist is not None:
        folder = Path(str(entry.dist.locate_file(package)), *below)
        if folder.is_dir():
            return folder
    spec = importlib.util.find_spec(package)  # of an editable installation
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(place, *below) for place in places), Path(package))


# Origins


def origin(kind: str, name: str, cls: type) -> dict[str, Any] | None:
    """Return where the class registered as `name` comes from, for a manifest; None if built in."""
    if cls.__module__.startswith(OWN):
        return None
    distribution, version = distribution_of(kind, name, cls.__module__)
    return {
        "kind": kind,
        "name": name,
        "module": cls.__module__,
        "distribution": distribution,
        "version": version,
        "sha256": source_hash(cls.__module__),
    }


def origins(classes: Iterable[tuple[str, str, type]]) -> dict[str, Any]:
    """Return the entry of a manifest about what is not built in; empty if all is."""
    found = [each for each in (origin(*each) for each in classes) if each is not None]
    return {"plugins": found} if found else {}


def distribution_of(kind: str, name: str, module: str) -> tuple[str | None, str | None]:
    """Return name and version of the installed distribution that a module belongs to."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    entry = installed(KINDS[kind]).get(name) if kind in KINDS else None
    if entry is not None and entry.dist is not None and entry.module.startswith(module):
        return entry.dist.name, entry.dist.version
    for distribution in packages_distributions().get(module.split(".")[0], []):
        try:
            return distribution, version(distribution)
        except PackageNotFoundError:
            continue
    return None, None


def source_hash(module: str) -> str | None:
    """Return the SHA-256 of a module's source file; None if it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
