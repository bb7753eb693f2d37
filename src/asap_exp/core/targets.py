"""Classes named by a path in a configuration: `{_target_: my_package.MyCallback, x: 1}`.

A path is followed only if it was given to this process, on its command line or in a YAML file that
was composed: a configuration that a run has saved may come from somebody else and executes nothing.
"""

from pkgutil import resolve_name
from typing import Any, TypeVar

from asap_exp.core import plugins
from asap_exp.core.errors import UserError

T = TypeVar("T")

TARGET = "_target_"

_given: set[str] = set()
"""Paths of the configurations that were composed in this process."""


def paths(tree: Any) -> set[str]:
    """Return every path in nested dicts and lists."""
    if isinstance(tree, dict):
        own = {str(tree[TARGET])} if TARGET in tree else set()
        return own.union(*map(paths, tree.values()))
    if isinstance(tree, list):
        return set().union(*map(paths, tree))
    return set()


def allow(tree: Any) -> None:
    """Allow the paths in a composed configuration, as nested dicts, to be followed."""
    _given.update(paths(tree))


def check_target(key: str, value: dict[str, Any]) -> None:
    """Raise UserError unless `value` names a class by a path."""
    path = value.get(TARGET)
    if not (isinstance(path, str) and "." in path):
        raise UserError(
            f"{key}={value} is not allowed; it must name a class that Python can import, as in "
            f"{{{TARGET}: my_package.my_module.MyClass, x: 1}}",
            key=key,
            value=value,
        )


def instance(key: str, value: dict[str, Any], kind: type[T], /, *arguments: Any, **more: Any) -> T:
    """Return an instance of the class that `value` names, made with its other keys and `arguments`.

    Raises UserError if the path was not given to this process, if it cannot be followed, or if what
    it names is not a subclass of `kind`.
    """
    import hydra.utils

    plugins.search_current_folder()
    if strange := paths(value) - _given:
        raise UserError(
            f"{key}: {min(strange)} stands in a saved configuration, whose paths are not followed; "
            "give it on the command line or in a file of your own (--config-dir)"
        )
    path = value[TARGET]
    try:
        found = resolve_name(path)  # and not Hydra's get_class, which prints the error as well
    except Exception as error:
        raise UserError(
            f"{key}: {path} cannot be imported ({reason(error)}). It must be a class in a module "
            "that Python finds: installed, in the current folder or on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"{key}: {path} is no {kind.__module__.split('.')[0]} {kind.__name__}")
    try:
        return hydra.utils.instantiate(value, *arguments, **more)
    except Exception as error:
        raise UserError(f"{key}: {path} could not be made: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the message of the first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
