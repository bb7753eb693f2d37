"""The options of attentions: which there are, and what each may be.

Those of built-in attentions stand in `conf/`, so that a command line is checked without PyTorch.
Those of other packages are the keywords of their classes.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asap_exp.core import plugins
from asap_exp.core.conf_files import attention_names, attentions
from asap_exp.core.config.fields import LARGEST_SETTING
from asap_exp.core.config.model import MOST_ITERATIONS, AttentionOptions
from asap_exp.core.errors import UserError, not_allowed
from asap_exp.core.schema import TYPES, check_range, check_rules, fields_of, split

SCALARS = (int, float, bool, str)


@dataclass(frozen=True)
class Option:
    """Option of an attention: the types that it takes, its rules, and whether it has a default."""

    kinds: tuple[type, ...]
    rules: tuple[Any, ...] = ()
    required: bool = False

    @property
    def words(self) -> str:
        """The types in words."""
        names = " or ".join(TYPES[kind.__name__] for kind in self.kinds if kind in SCALARS)
        return f"{names} (or null)" if types.NoneType in self.kinds else names

    def check(self, key: str, value: Any) -> None:
        """Raise UserError if the value has another type or is out of range."""
        whole = type(value) is int and float in self.kinds
        if not (whole or type(value) in self.kinds):
            raise UserError(
                f"{key}={value} has the wrong type; it must be {self.words}",
                key=key,
                value=value,
                allowed=self.words,
            )
        if value is None:
            return
        check_rules(key, value, self.rules)
        if type(value) is int:
            check_range(key, value, maximum=MOST_ITERATIONS)
        elif type(value) is float:
            check_range(key, value, maximum=LARGEST_SETTING)


REGISTERED: dict[str, dict[str, Option]] = {}
"""Options by attention, of those that are not built in and whose class was imported."""


class UnknownAttention(UserError):
    """Raised for an attention that is neither built in nor of a package that is known here."""


def declare(name: str, init: Callable[..., None]) -> None:
    """Note the keywords of an attention's `__init__` as its options."""
    if name not in attention_names():
        parameters = inspect.signature(init).parameters.values()
        found = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        hints = type_hints(init)
        REGISTERED[name] = {
            option: option_of(name, parameter, hints.get(option))
            for option, parameter in found.items()
        }


def type_hints(init: Callable[..., None]) -> dict[str, Any]:
    """Return the annotations with their rules; empty if one names what cannot be found."""
    try:
        return typing.get_type_hints(init, include_extras=True)
    except NameError:
        return {}


def option_of(name: str, parameter: inspect.Parameter, hint: Any) -> Option:
    """Return the option of a keyword, by its annotation or else its default."""
    required = parameter.default is parameter.empty
    kind, rules = split(hint)
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if union else (kind,)
    if not set(kinds) <= {*SCALARS, types.NoneType} or kinds == (types.NoneType,):
        kinds = (type(parameter.default),)
    if not set(kinds) <= {*SCALARS, types.NoneType} or not set(kinds) & set(SCALARS):
        raise UserError(
            f"the option {parameter.name} of the attention {name} must be a number, a text, true "
            "or false: give it such a type or default, since a configuration holds nothing else"
        )
    return Option(kinds, rules, required)


def built_in(name: str) -> dict[str, Option]:
    """Return the options of a built-in attention."""
    known = {option: split(declared) for option, declared in fields_of(AttentionOptions).items()}
    found = {}
    for option, default in attentions()[name].items():
        kind, rules = known.get(option, (type(default), ()))
        kinds = (kind, types.NoneType) if default is None else (type(default),)
        found[option] = Option(kinds, rules)
    return found


def of_other_packages() -> set[str]:
    """Return the names of the attentions that are registered or installed, and not built in."""
    return {*REGISTERED, *plugins.installed(plugins.KINDS["attention"])}


def known_attentions() -> tuple[str, ...]:
    return tuple(sorted({*attentions(), *of_other_packages()}))


def options_of(name: Any) -> dict[str, Option]:
    """Return the options of an attention; import an installed package if it registers that."""
    if name in attentions():
        return built_in(name)
    if name not in REGISTERED and isinstance(name, str) and plugins.load("attention", name):
        check_registered(name)
    if name not in REGISTERED:
        raise unknown_attention("attention.name", name, known_attentions())
    return REGISTERED[name]


def unknown_attention(key: str, name: Any, allowed: tuple[str, ...]) -> UnknownAttention:
    """Return the UserError for an attention that is not one of `allowed`."""
    refused = not_allowed(key, name, allowed)
    return UnknownAttention(
        f"{refused}; or name the module that registers it: attention.{plugins.MODULE}=MODULE",
        key=key,
        value=name,
        allowed=allowed,
        hint=refused.hint,
    )


def check_registered(name: str) -> None:
    """Raise UserError if an installed package does not register what its entry point names."""
    if name not in REGISTERED:
        entry = plugins.installed(plugins.KINDS["attention"])[name]
        raise UserError(
            f"the entry point {name} is {plugins.described(entry)}, which registers no attention "
            f"of that name; it must be under @register({name!r})"
        )


def check_attention(given: dict[str, Any]) -> None:
    """Raise UserError if the attention lacks an option, or its type or value is wrong."""
    name = given.get("name")
    options = options_of(name)
    for option, value in given.items():
        if option == "name":
            continue
        if option not in options:
            raise unknown_option(str(name), option, value, tuple(options))
        options[option].check(f"attention.{option}", value)
    for option, declared in options.items():
        if declared.required and option not in given:
            raise UserError(
                f"attention.{option} must be set; attention={name} has no default for it",
                key=f"attention.{option}",
            )


def unknown_option(name: str, option: str, value: Any, allowed: tuple[str, ...]) -> UserError:
    """Return the UserError for an option that the attention `name` lacks."""
    close = difflib.get_close_matches(option, allowed, n=1)
    hint = f" Did you mean attention.{close[0]}?" if close else ""
    there = ", ".join(f"attention.{each}" for each in allowed) or "none"
    return UserError(
        f"attention.{option}={value} is not an option of attention={name}.{hint} "
        f"Its options: {there}",
        key=f"attention.{option}",
        value=value,
        allowed=allowed,
        hint=close[0] if close else None,
    )
