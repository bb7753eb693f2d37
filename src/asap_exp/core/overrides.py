"""Checks of command-line arguments before Hydra composes anything.

Hydra accepts any key after a plus sign, suggests no alternative when it refuses another key, and
ends in a traceback for some values of a group.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from asap_exp.core import plugins
from asap_exp.core.attention_options import of_other_packages, unknown_attention
from asap_exp.core.conf_files import (
    group_folders,
    option_file,
    options,
    own_data_tasks,
    roots,
    search_path,
    tasks,
)
from asap_exp.core.config import REQUEST_SCHEMAS, TRAIN_SCHEMAS
from asap_exp.core.errors import UserError, check_choice
from asap_exp.core.renamed import check_renamed
from asap_exp.core.schema import FREE_FORM, check_key, check_path, fields_of

LOGGER = "logger"
"""Group whose files all stages find, though some have no such key."""


def quoted(key: str, value: object) -> str:
    """Return `key=value` for any text value, quoted as Hydra's grammar requires."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value)).replace("'", "\\'")
    return f"{key}='{text}'"


def check_overrides(
    stage: str, overrides: Sequence[str], schema: type, own: Path | None = None
) -> list[str]:
    """Return the overrides as Hydra takes them.

    Refuses keys, groups and options that the stage lacks, in every form of override, and follows
    the modules that are named. `own` is the user's folder of YAML files.
    """
    for argument in overrides:
        if "=" not in argument and not argument.startswith("~"):
            hint = meant(stage, argument, own)
            raise UserError(f"{argument} is not an argument: give KEY=VALUE{hint}")
    parsed = {argument: parsed_override(argument) for argument in overrides}
    given = {text: each for text, each in parsed.items() if not names_module(each)}
    for text in parsed.keys() - given.keys():
        plugins.follow(parsed[text].key_or_group, parsed[text].value())
    schema = schema.current() if hasattr(schema, "current") else schema
    for override in given.values():
        check_override(stage, override, schema, own)
        check_repeated(override)
    check_experiments(stage, list(given.values()), own)
    if stage == "train":
        check_takes_path(list(given.values()))
    else:
        check_task(list(given.values()))
    forms = [for_hydra(stage, text, override, own) for text, override in given.items()]
    return [*itertools.chain(*forms), *searched(stage)]


def check_task(overrides: Sequence[Override]) -> None:
    """Raise UserError if a later stage is given a task that has neither a file nor a run."""
    given = {override.key_or_group: names(override) for override in overrides}
    results = given.get("paths.results") or ["results"]
    for name in given.get("task", []):
        if not any((Path(each).expanduser() / "runs" / name).is_dir() for each in results):
            check_choice("task", name, tuple(tasks()))


def check_takes_path(overrides: Sequence[Override]) -> None:
    """Raise UserError if a task that is not one of own data is given `data.path`."""
    own = own_data_tasks()
    paths = [override for override in overrides if override.key_or_group == "data.path"]
    for override in overrides:
        for task in names(override) if override.key_or_group == "task" and paths else ():
            if task not in own:
                path = paths[0].value()
                raise UserError(
                    f"data.path={path} is for your own data, with task={', task='.join(own)}; "
                    f"task={task} has its data set, which data.root=FOLDER looks for in a folder",
                    key="data.path",
                    value=path,
                    hint=f"task={own[0]}",
                )


def names_module(override: Override) -> bool:
    """Return True for `attention._module=...` and the like."""
    kind, _, key = override.key_or_group.partition(".")
    return kind in plugins.KINDS and key == plugins.MODULE


def for_hydra(stage: str, argument: str, override: Override, own: Path | None) -> list[str]:
    """Return an override in the form in which Hydra takes it.

    Hydra refuses a plus before a group that has a default, and a key that the chosen options lack
    without one. Which keys those are is known, and said, once the configuration is composed.
    """
    key, value = override.key_or_group, override.value()
    if override.is_delete() or key.startswith("hydra"):
        return [argument]
    folders = group_folders(stage, key.split("@")[0], own)
    alone = key == FREE_FORM and isinstance(value, str) and value not in options(*folders)
    if alone and folders:  # an attention without a file
        return [f"~{key}", f"++{key}.name={value}"]
    return [f"{'' if folders else '++'}{argument.lstrip('+')}"]


def searched(stage: str) -> list[str]:
    """Return the override that lets Hydra search the folders of installed packages; or none."""
    places = ",".join(f"'{place}'" for place in search_path(stage))
    return [f"hydra.searchpath=[{places}]"] if places else []


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
    folders = (path for root in roots(stage, own) if root.is_dir() for path in root.iterdir())
    groups = sorted({path.name for path in folders if path.is_dir() and path.name != "hydra"})
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
    if key.startswith(("hydra/", "hydra.")):
        return  # Hydra knows which of its groups and plugins there are
    for option in names(override):
        check_renamed(stage, key, option, own)
    folders = group_folders(stage, key.split("@")[0], own)
    if stage != "train" and key == LOGGER and LOGGER not in fields_of(schema):
        raise UserError(
            f"{key}={override.value()} is not an option of {stage}, which logs to no tracker; "
            "leave it out"
        )
    if folders:
        check_option(override, folders)
    elif own is not None and key.partition(".")[0] in plugins.KINDS:
        return  # a file of the user's may name a module that has to be imported first
    elif not (override.is_delete() or key.startswith("hydra")):
        check_override_key(stage, key, override.value(), schema)


def check_repeated(override: Override) -> None:
    """Refuse a sweep that names a value twice: two jobs would make one run."""
    if not override.is_choice_sweep():
        return
    values = list(override.sweep_string_iterator())
    for value in values:
        if values.count(value) > 1:
            raise UserError(
                f"{override.key_or_group}={','.join(values)} names {value} {values.count(value)} "
                "times; name each value once"
            )


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
        if isinstance(name, str) and name.removesuffix(".yaml") in allowed:
            continue
        if override.key_or_group == FREE_FORM and isinstance(name, str):
            allowed = tuple(sorted({*allowed, *of_other_packages()}))  # with a class, and no file
            if name not in allowed:
                raise unknown_attention(FREE_FORM, name, allowed)
            continue
        check_choice(override.key_or_group, shown, allowed)


def schemas_of(stage: str, schema: type) -> tuple[type, ...]:
    """Return the schemas that a stage's keys may be of: those of every kind of model in `train`."""
    return (*TRAIN_SCHEMAS.values(), *REQUEST_SCHEMAS.values()) if stage == "train" else (schema,)


def check_override_key(stage: str, key: str, value: Any, schema: type) -> None:
    """Refuse an unknown key, and an empty path, of which Hydra would make the folder of a sweep.

    Until the kind of model is known, a key of any kind passes.
    """
    refusals = []
    for kind in schemas_of(stage, schema):
        try:
            check_key(key, value, kind)
        except UserError as refusal:
            refusals.append(refusal)
        else:
            return check_path(key, value, kind)
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
