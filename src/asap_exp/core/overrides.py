"""Checks of command-line arguments before Hydra composes anything.

Hydra accepts any key after a plus sign, suggests no alternative when it refuses another key, and
ends in a traceback for some values of a group.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from asap_exp.core.conf_files import conf_dir, group_folders, option_file, options, tasks
from asap_exp.core.config import TRAIN_SCHEMAS
from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.renamed import check_renamed
from asap_exp.core.schema import check_key


def quoted(key: str, value: object) -> str:
    """Return `key=value` for any text value, quoted as Hydra's grammar requires."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value)).replace("'", "\\'")
    return f"{key}='{text}'"


def check_overrides(
    stage: str, overrides: Sequence[str], schema: type, own: Path | None = None
) -> list[str]:
    """Return the overrides as Hydra takes them.

    Refuses keys, groups and options that the stage lacks, in every form of override. `own` is the
    user's folder of YAML files.
    """
    for argument in overrides:
        if "=" not in argument and not argument.startswith("~"):
            hint = meant(stage, argument, own)
            raise UserError(f"{argument} is not an argument: give KEY=VALUE{hint}")
    parsed = [parsed_override(argument) for argument in overrides]
    for override in parsed:
        check_override(stage, override, schema, own)
    check_experiments(stage, parsed, own)
    return [
        for_hydra(stage, argument, override, own)
        for argument, override in zip(overrides, parsed, strict=True)
    ]


def for_hydra(stage: str, argument: str, override: Override, own: Path | None) -> str:
    """Return an override in the form in which Hydra takes it.

    Hydra refuses a plus before a group that has a default, and a key that the chosen options lack
    without one. Which keys those are is known, and said, once the configuration is composed.
    """
    key = override.key_or_group
    if override.is_delete() or key.startswith("hydra"):
        return argument
    is_group = group_folders(stage, key.split("@")[0], own)
    return f"{'' if is_group else '++'}{argument.lstrip('+')}"


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


def meant(stage: str, word: str, own: Path | None) -> str:
    """Return a hint for a word without a key: the groups that have an option of this name."""
    roots = [root for root in (own, conf_dir() / stage) if root is not None]
    groups = sorted({path.name for root in roots for path in root.iterdir() if path.is_dir()})
    found = [group for group in groups if option_file(stage, group, word, own)]
    return f". Did you mean {' or '.join(f'{group}={word}' for group in found)}?" if found else ""


def check_override(stage: str, override: Override, schema: type, own: Path | None) -> None:
    """Refuse an override whose key, group or option the stage lacks."""
    key = override.key_or_group
    if key.startswith("hydra.") and str(override.value()).strip("'\"").startswith("~"):
        raise UserError(
            f"{key}={override.value()} is not allowed: Hydra would make a folder named ~; give "
            "the whole path"
        )
    for option in names(override):
        check_renamed(stage, key, option, own)
    if folders := group_folders(stage, key.split("@")[0], own):
        check_option(override, folders)
    elif not (override.is_delete() or key.startswith("hydra")):
        check_override_key(stage, key, override.value(), schema)
        if key == "task":
            for name in names(override):
                check_choice("task", name, tuple(tasks()))


def names(override: Override) -> list[str]:
    """Return the plain texts that an override gives, also as a choice between several."""
    if override.is_delete():
        return []
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    return [str(each) for each in values if isinstance(each, str) or hasattr(each, "text")]


def check_option(override: Override, folders: Sequence[Path]) -> None:
    """Refuse an option that a group lacks, and `group=null`, `group=3` and the like."""
    if override.is_delete():
        return
    allowed = tuple(options(*folders))
    if override.is_sweep_override():
        for each in names(override):
            check_choice(override.key_or_group, each.removesuffix(".yaml"), allowed)
        return
    value = override.value()
    for name in value if isinstance(value, list) else [value]:
        shown = name if isinstance(name, str) else override.get_value_element_as_str()
        if not isinstance(name, str) or name.removesuffix(".yaml") not in allowed:
            check_choice(override.key_or_group, shown, allowed)


def check_override_key(stage: str, key: str, value: Any, schema: type) -> None:
    """Refuse an unknown key; until the kind of model is known, a key of any kind passes."""
    refusals = []
    for kind in TRAIN_SCHEMAS.values() if stage == "train" else (schema,):
        try:
            return check_key(key, value, kind)
        except UserError as refusal:
            refusals.append(refusal)
    raise max(refusals, key=lambda refusal: refusal.hint is not None)


def check_experiments(stage: str, overrides: Sequence[Override], own: Path | None) -> None:
    """Refuse an experiment of another task than the one that is given beside it."""
    given = {
        key: [name for each in overrides if each.key_or_group == key for name in names(each)]
        for key in ("task", "experiment")
    }
    for experiment in given["experiment"]:
        file = option_file(stage, "experiment", experiment, own)
        task = None if file is None else task_of(file)
        for other in given["task"] if task else []:
            if other != task:
                raise UserError(
                    f"experiment={experiment} is of task={task}, not of task={other}; leave "
                    f"task={other} out, or choose another experiment",
                    key="experiment",
                    value=experiment,
                    hint=f"experiment={experiment}",
                )


def task_of(experiment: Path) -> str | None:
    """Return the task that an experiment's file sets, or None if it is for any task."""
    from omegaconf import OmegaConf

    for entry in OmegaConf.to_container(OmegaConf.load(experiment)).get("defaults", []):  # type: ignore[union-attr]
        if isinstance(entry, dict) and "override /task" in entry:
            return str(entry["override /task"])
    return None
