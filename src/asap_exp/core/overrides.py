"""Checks of command-line arguments before Hydra composes anything.

Hydra accepts any key after a plus sign, suggests no alternative when it refuses another key, and
ends in a traceback for some values of a group.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from asap_exp.core.conf_files import group_folder, options, own_data_tasks, tasks
from asap_exp.core.config import REQUEST_SCHEMAS, TRAIN_SCHEMAS
from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.renamed import check_renamed
from asap_exp.core.schema import check_key


def quoted(key: str, value: object) -> str:
    """Return `key=value` for any text value, quoted as Hydra's grammar requires."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value)).replace("'", "\\'")
    return f"{key}='{text}'"


def check_overrides(stage: str, overrides: Sequence[str], schema: type) -> None:
    """Refuse keys, groups and options that the stage lacks, in every form of override."""
    given: dict[str, Any] = {}
    for argument in overrides:
        if argument.startswith("-") or not ("=" in argument or argument.startswith(("~", "+"))):
            continue  # one of Hydra's own flags, or its value
        override = parsed_override(argument)
        key = override.key_or_group
        given[key] = override.value()
        if key.startswith("hydra.") and str(override.value()).strip("'\"").startswith("~"):
            raise UserError(
                f"{key}={override.value()} is not allowed: Hydra would make a folder named ~; give "
                "the whole path"
            )
        for option in names(override):
            check_renamed(stage, key, option)
        if folder := group_folder(stage, key.split("@")[0]):
            check_option(override, folder)
        elif not (override.is_delete() or key.startswith("hydra")):
            check_override_key(stage, key, override.value(), schema)
            if key == "task" and names(override):
                check_choice("task", override.value(), tuple(tasks()))
    if stage == "train" and "data.path" in given and isinstance(given.get("task"), str):
        check_takes_path(given["task"], given["data.path"])


def check_takes_path(task: str, path: Any) -> None:
    """Raise UserError unless the task is one of own data."""
    own = own_data_tasks()
    if task not in own:
        raise UserError(
            f"data.path={path} is for your own data, with task={', task='.join(own)}; task={task} "
            "has its data set, which data.root=FOLDER looks for in a folder",
            key="data.path",
            value=path,
            hint=f"task={own[0]}",
        )


def parsed_override(argument: str) -> Override:
    """Parse an override by Hydra's grammar; UserError says how to quote what cannot be parsed."""
    try:
        return OverridesParser.create().parse_override(argument)
    except (HydraException, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        key, _, value = argument.partition("=")
        raise UserError(
            f"{argument[:200]} cannot be read ({reason[:200]}). A value with ~, =, brackets, "
            "blanks or letters beyond a to z needs quotes of its own, inside those of the shell: "
            f'"{quoted(key, value[:200])}"'
        ) from error


def names(override: Override) -> list[str]:
    """Return the override's value if it is plain text; empty for any other value."""
    if override.is_delete() or override.is_sweep_override():
        return []
    value = override.value()
    return [str(value)] if isinstance(value, str) or hasattr(value, "text") else []


def check_option(override: Override, folder: Path) -> None:
    """Refuse an option that a group lacks, and `group=null`, `group=3` and the like."""
    if override.is_delete() or override.is_sweep_override():
        return
    given = override.value()
    for name in given if isinstance(given, list) else [given]:
        shown = name if isinstance(name, str) else override.get_value_element_as_str()
        allowed = tuple(options(folder))
        if not isinstance(name, str) or name.removesuffix(".yaml") not in allowed:
            check_choice(override.key_or_group, shown, allowed)


def check_override_key(stage: str, key: str, value: Any, schema: type) -> None:
    """Refuse an unknown key; until the kind of model is known, a key of any kind passes."""
    refusals = []
    kinds = (*TRAIN_SCHEMAS.values(), *REQUEST_SCHEMAS.values())
    for kind in kinds if stage == "train" else (schema,):
        try:
            return check_key(key, value, kind)
        except UserError as refusal:
            refusals.append(refusal)
    raise max(refusals, key=lambda refusal: refusal.hint is not None)
