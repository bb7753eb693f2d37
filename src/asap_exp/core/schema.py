"""Checks of a configuration against its schema: names, types, ranges and choices, by dotted key."""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any

from asap_exp.core.conf_files import attentions
from asap_exp.core.config.fields import Path, Rule
from asap_exp.core.errors import UserError, check_range
from asap_exp.core.locations import check_can_be_made, check_no_file, expanded, written

LARGEST = 3e38
"""Upper bound of numbers: about the largest in single precision."""

FREE_FORM = "attention"
"""Key below which the files of `conf/`, not a dataclass, say what is allowed."""

SHORTEST = 3
"""Letters of a name from which a longer key is suggested for it."""

MOST_MEANT = 3
"""Most keys of one name that are suggested."""

TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def fields_of(schema: Any) -> dict[str, Any]:
    """Return the declared type of each field with its rules, by name; empty without fields."""
    if not dataclasses.is_dataclass(schema):
        return {}
    return _declared(typing.cast(type, schema))


@cache
def _declared(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def split(declared: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split a declared type into the type itself and its rules."""
    if typing.get_origin(declared) is Annotated:
        return declared.__origin__, declared.__metadata__
    return declared, ()


def field_of(schema: type, path: str) -> tuple[Any, tuple[Any, ...]] | None:
    """Return type and rules of the dotted `path` (of its list for an entry); None if free-form."""
    found: tuple[Any, tuple[Any, ...]] = (schema, ())
    for part in path.split("[")[0].split("."):
        fields = fields_of(found[0])
        if part not in fields:
            return None
        found = split(fields[part])
    return found


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value below `tree` with its dotted key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree


# Names


def check_key(path: str, value: Any, schema: Any) -> None:
    """Raise UserError unless the dotted `path` is a key of `schema`.

    Keys below `attention` pass: which there are is known when the attention is.
    """
    root = schema
    parts = path.split(".")
    for depth, part in enumerate(parts):
        if parts[:depth] == [FREE_FORM]:
            return
        fields = fields_of(schema)
        if depth and not fields:
            parent = ".".join(parts[:depth])
            raise UserError(
                f"{path}={value}: {parent} is one value and has no keys below it", key=path
            )
        if part not in fields:
            otherwise = getattr(schema, "otherwise", {})
            key = ".".join([*parts[:depth], part])
            others = elsewhere(parts[-1], root) if depth == len(parts) - 1 else []
            raise unknown_key(key, value, tuple(fields), path, otherwise, others)
        schema = split(fields[part])[0]
        if part != FREE_FORM and is_free_form(schema):
            return


def unknown_key(
    key: str,
    value: Any,
    allowed: tuple[str, ...],
    given: str = "",
    otherwise: Mapping[str, str] = types.MappingProxyType({}),
    others: Sequence[str] = (),
) -> UserError:
    """Return the UserError for `key`, a part of the `given` key, with the allowed keys.

    `otherwise` says for some other names what to use instead, and `others` are the keys of the same
    name in other groups, by their whole paths.
    """
    parent, _, name = key.rpartition(".")
    if name in otherwise:
        return UserError(
            f"{given or key}={value} is refused: {otherwise[name]}", key=key, value=value
        )
    known = (*allowed, *otherwise)
    close = list(others) or closest(name, known)
    hint = f" Did you mean {' or '.join(others or close[:1])}?" if close else ""
    if close and close[0] in otherwise:
        hint += f" That is refused: {otherwise[close[0]]}."
    where = f" below {parent}" if parent else ""
    return UserError(
        f"{given or key}={value}: there is no key {name}{where}.{hint} "
        f"Allowed{where}: {', '.join(allowed)}",
        key=key,
        value=value,
        allowed=allowed,
        hint=close[0] if close else None,
    )


def elsewhere(name: str, schema: Any) -> list[str]:
    """Return the dotted keys that end in `name`, in any group; none if there are too many."""
    found = [path for path in all_keys(schema) if path.rpartition(".")[2] == name]
    return found if len(found) <= MOST_MEANT else []


def all_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the values of a schema, and those of every built-in attention."""
    for name, declared in fields_of(schema).items():
        kind, _ = split(declared)
        if name == FREE_FORM and is_free_form(kind):
            options = {option for given in attentions().values() for option in given}
            yield from (f"{prefix}{name}.{option}" for option in sorted(options))
        elif dataclasses.is_dataclass(kind):
            yield from all_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def closest(name: str, known: Collection[str]) -> list[str]:
    """Return the known key that was probably meant, first of one or more, or none."""
    return difflib.get_close_matches(name, known, n=1) or longer(name, known)


def longer(name: str, known: Iterable[str]) -> list[str]:
    """Return the known keys that begin with `name`, or have it among their words."""
    if len(name) < SHORTEST:
        return []
    return [key for key in known if key.startswith(name) or name in key.split("_")]


def is_free_form(kind: Any) -> bool:
    """Return True for a group that takes any keys, also if it may be null."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    options = typing.get_args(kind) if union else (kind,)
    return any(typing.get_origin(option) is dict for option in options)


# Types


def type_name(schema: type, path: str) -> str:
    """Describe the declared type of the dotted `path` in words."""
    found = field_of(schema, path)
    kind: Any = object if found is None else found[0]
    if path.endswith("]"):
        (kind,) = typing.get_args(kind) or (object,)
    if typing.get_origin(kind) is list:
        return "a list, for example [a,b]"
    if is_free_form(kind):
        return "a group of keys, for example {a: 1}"
    if dataclasses.is_dataclass(kind):
        return f"a group of the keys {', '.join(fields_of(kind))}"
    options = [t for t in (typing.get_args(kind) or (kind,)) if t is not type(None)]
    words = " or ".join(TYPES.get(getattr(t, "__name__", str(t)), str(t)) for t in options)
    return f"{words} (or null)" if type(None) in typing.get_args(kind) else words


# Ranges and choices


def check_fields(schema: type, tree: dict[str, Any], prefix: str = "") -> None:
    """Raise UserError if a value of `tree` is outside the range or choices of its field.

    `tree` is a `schema` as nested dicts, and `prefix` the key of the whole.
    """
    for name, declared in fields_of(schema).items():
        kind, rules = split(declared)
        key, value = f"{prefix}{name}", tree[name]
        if dataclasses.is_dataclass(kind):
            check_fields(kind, value, f"{key}.")  # type: ignore[arg-type]
        elif value is not None:
            check_rules(key, value, rules)


def check_rules(key: str, value: Any, rules: tuple[Any, ...]) -> None:
    for rule in rules:
        if isinstance(rule, Rule):
            rule.check(key, value)


def check_values(tree: dict[str, Any]) -> None:
    """Refuse values that no part of the program can hold: infinite or huge numbers, NUL."""
    for key, value in leaves(tree):
        if isinstance(value, int):
            check_range(key, value, maximum=2**63 - 1)
            check_range(key, value, minimum=-(2**63))
        elif isinstance(value, float):
            check_range(key, value, minimum=-LARGEST, maximum=LARGEST)
        elif isinstance(value, str) and ("\0" in value or "${" in value):
            raise UserError(
                f"{key}={value!r} is not allowed; it must be text without NUL and ${{",
                key=key,
                value=value,
            )


# Paths


def holds_path(rules: tuple[Any, ...]) -> bool:
    return any(isinstance(rule, Path) for rule in rules)


def check_path(key: str, value: Any, schema: type) -> None:
    """Raise UserError for a path that is empty, and for a file where a stage would write a folder.

    An empty one would be the current folder, or none at all.
    """
    found = field_of(schema, key)
    if found is None or not holds_path(found[1]) or not isinstance(value, str):
        return
    if not value.strip():
        raise UserError(
            f"{key} is empty, as from a shell variable that is not set; give a path, or leave it "
            "out",
            key=key,
            value=value,
        )
    if is_written(found[1]):
        check_no_file(key, os.path.expanduser(value))


def is_written(rules: tuple[Any, ...]) -> bool:
    """Return True for the path of a folder that a stage writes to."""
    return any(isinstance(rule, Path) and rule.written for rule in rules)


def check_written(config: Any) -> None:
    """Raise UserError unless the folders that a parsed configuration names exist or can be made.

    From now on a file that cannot be written names the one of their keys that it is below.
    """
    for key, value in leaves(dataclasses.asdict(config)):
        found = field_of(type(config), key)
        if found is not None and isinstance(value, str) and is_written(found[1]):
            check_can_be_made(key, value)
            written[key] = os.path.abspath(value)


def expand_homes(config: Any, prefix: str = "") -> None:
    """Replace ~ by the home directory wherever a schema declares a path."""
    for name, declared in fields_of(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            expand_homes(value, f"{prefix}{name}.")
        elif holds_path(split(declared)[1]) and isinstance(value, str):
            setattr(config, name, expanded(f"{prefix}{name}", value))
