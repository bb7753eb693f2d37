"""`compose`, once for all configurations that differ in a folder alone: Hydra takes 0.1 s each."""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from asap_exp.core.composing import compose
from asap_exp.core.errors import UserError

Schema = TypeVar("Schema")


def composed(stage: str, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Return what `compose` returns, which the caller may change."""
    folders: list[str] = []

    def placeholder(match: re.Match) -> str:
        folders.append(match[0])
        return f"/folder-{len(folders) - 1}"

    general = [re.sub(r"(?<==)/.*", placeholder, override) for override in overrides]
    try:
        config = deepcopy(_composed(stage, tuple(general), schema))
    except UserError:
        return compose(stage, overrides, schema)  # whose message names the folders
    return _filled(config, folders)


@cache
def _composed(stage: str, overrides: tuple[str, ...], schema: type[Schema]) -> Schema:
    return compose(stage, overrides, schema)


def _filled(value: Any, folders: Sequence[str]) -> Any:
    """Put the folders in the places of their placeholders."""
    if isinstance(value, str):
        return re.sub(r"/folder-(\d+)", lambda match: folders[int(match[1])], value)
    if isinstance(value, list):
        return [_filled(item, folders) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, folders) for key, item in value.items()}
    if is_dataclass(value):
        for field in fields(value):
            filled = _filled(getattr(value, field.name), folders)
            object.__setattr__(value, field.name, filled)  # some are frozen
    return value
