"""Compose `conf/` and a command line into a checked configuration, without PyTorch."""

import copy
import dataclasses
import os
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from asap_exp.core import plugins, targets
from asap_exp.core.attention_options import check_attention
from asap_exp.core.conf_files import conf_dir
from asap_exp.core.config import OWN_SCHEMAS, REQUEST_SCHEMAS, TRAIN_SCHEMAS, TrainConfig
from asap_exp.core.errors import UserError, check_choice, not_allowed
from asap_exp.core.files import read_text
from asap_exp.core.overrides import check_overrides, quoted
from asap_exp.core.plugins import MODULE
from asap_exp.core.schema import (
    check_fields,
    check_path,
    check_values,
    elsewhere,
    expand_homes,
    field_of,
    fields_of,
    holds_path,
    leaves,
    split,
    type_name,
    unknown_key,
)

__all__ = ["compose", "conf_dir", "load_saved", "parse", "quoted"]

Schema = TypeVar("Schema")

SEVERAL = r"(Ambiguous value for argument|Sweep parameters) '\+*(?P<key>[^=]*)=(?P<value>.*)'"
"""How Hydra begins to refuse several values of a key where there is no sweep."""

# Resolver for conf/, which Hydra reads before a configuration is parsed.
OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)
OmegaConf.register_new_resolver("conf_dir", lambda: str(conf_dir()), replace=True)


def compose(stage: str, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Return the checked configuration of `python -m asap_exp.STAGE OVERRIDES`, without an app."""
    words = check_overrides(stage, overrides, schema)
    directory = str(conf_dir() / stage)
    with beside_an_app(), hydra.initialize_config_dir(directory, version_base="1.3"):
        try:
            config = hydra.compose(stage, words)
        except HydraException as error:
            raise in_words(error) from error
    return parse(config, schema)


@contextmanager
def beside_an_app() -> Iterator[None]:
    """Let a configuration be composed while a Hydra application runs, which allows only its own."""
    holder = GlobalHydra.instance()
    running, holder.hydra = holder.hydra, None
    try:
        yield
    finally:
        holder.hydra = running


def in_words(error: HydraException) -> UserError:
    """Return what Hydra could not compose as a UserError, without its search path."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return not_allowed(group, name, tuple(error.options))
    if missing := re.match(r"You must specify '(\w+)'", str(error)):
        key, choices = missing[1], re.findall(r"^\t(\S+)$", str(error), flags=re.MULTILINE)
        return UserError(
            f"{key} must be set: give {key}=NAME, one of {', '.join(choices)}",
            key=key,
            allowed=tuple(choices),
        )
    if several := re.match(SEVERAL, str(error)):
        return several_values(several["key"], several["value"])
    if "'hydra/sweeper/optuna'" in str(error):
        return UserError(
            "hydra/sweeper=tpe needs optuna, which is not installed here; install it with: "
            "pip install 'asap_exp[optuna]'"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
    text = f"{error}\n{cause}".partition("\nConfig search path")[0]
    return UserError(text.strip())


def several_values(key: str, value: str) -> UserError:
    """Return the UserError for several values of a key where no sweep was asked for."""
    listed = "" if "(" in value else f" (a list is written [{value}])"
    return UserError(
        f"{key}={value} has several values: add -m, to run the command once for each{listed}",
        key=key,
        value=value,
        hint="-m",
    )


def load_saved(file: Path, schema: type[Schema]) -> Schema:
    """Return the configuration that a run saved: plain values, so nothing is interpolated."""
    try:
        saved = OmegaConf.create(read_text(file))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(saved, DictConfig):
        raise UserError(f"{file} is damaged: it holds no configuration")
    for key, value in leaves(OmegaConf.to_container(saved, resolve=False)):
        if key.endswith(f".{MODULE}"):
            raise UserError(
                f"{file} is not as it was saved: {key}={value} names a module, which a saved "
                "configuration cannot. Take it out; give it on the command line if you trust it"
            )
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{file} is not as it was saved: {key}={value} would be looked up on this machine. "
                "A saved configuration holds plain values; put the value in its place"
            )
    return typed(saved, schema)


def parse(config: DictConfig, schema: type[Schema]) -> Schema:
    """Return `config`, composed for this process, as a `schema`; follow the modules that it names.

    The paths of classes in it are allowed. Empty paths of files are not, but in what a run saved
    before they were refused. UserError names the key, the value and what is allowed.
    """
    parsed = typed(without_modules(config, schema), schema)
    tree = dataclasses.asdict(parsed)  # type: ignore[call-overload]
    for key, value in leaves(tree):
        check_path(key, value, type(parsed))
    targets.allow(tree)
    return parsed


def without_modules(config: DictConfig, schema: type) -> DictConfig:
    """Follow the modules that a composed configuration names, and return it without them."""
    nodes = {key: config._get_node(key) for key in plugins.KINDS if key in config}
    naming = [k for k, node in nodes.items() if isinstance(node, DictConfig) and MODULE in node]
    if not naming:
        return config
    config = copy.deepcopy(config)
    OmegaConf.set_struct(config, False)
    for key in naming:
        named = config[key].pop(MODULE)
        is_list = isinstance(named, ListConfig)
        plugins.follow(f"{key}.{MODULE}", list(named) if is_list else named)
        if not config[key] and key not in fields_of(schema):  # a stage without this group
            del config[key]
    return config


def typed(config: DictConfig, schema: type[Schema]) -> Schema:
    """Return `config` as a `schema`; UserError names the key, the value and what is allowed."""
    plain = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    if "task" in plain and not isinstance(plain["task"], dict | DictConfig):
        plain["task"] = {"name": plain["task"]}  # the form of every saved configuration
    config = OmegaConf.create(plain, flags={"allow_objects": True})
    given = dict(leaves(OmegaConf.to_container(config, resolve=False)))
    schema = concrete(schema, config)
    check_known_keys(config, schema)
    check_no_secrets(given, schema)
    check_switches(given, schema)
    try:
        OmegaConf.resolve(config)
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        tree = cast(dict[str, Any], OmegaConf.to_container(merged, throw_on_missing=True))
        check_fields(schema, tree)
        if "attention" in tree:
            check_attention(tree["attention"])
        parsed = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        key = error.full_key
        own = key == "data.path"
        value = "FOLDER, which holds your images or texts (docs/own_data.md)" if own else "VALUE"
        raise UserError(f"{key} must be set; for example {key}={value}", key=key) from error
    except ValidationError as error:
        raise wrong_type(error, config, given, schema) from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    check_values(tree)
    expand_homes(parsed)
    return cast(Schema, parsed)


def wrong_type(
    error: ValidationError, config: DictConfig, given: dict[str, Any], schema: type
) -> UserError:
    """Return the UserError for a value whose type is not that of its field."""
    key = error.full_key or ""
    value = OmegaConf.select(config, key) if key else None
    wanted = type_name(schema, key)
    if value is None:
        return UserError(f"{key} is missing; it must be {wanted}", key=key, allowed=wanted)
    shown = given.get(key, value)  # as written: never show the content of an environment variable
    return UserError(
        f"{key}={shown} has the wrong type; it must be {wanted}",
        key=key,
        value=shown,
        allowed=wanted,
    )


def check_switches(given: dict[str, Any], schema: type) -> None:
    """Refuse a number for true or false, which OmegaConf takes for true, unless it is 0 or 1."""
    for key, value in given.items():
        if not isinstance(value, int | float) or value in (0, 1):
            continue
        kind = (field_of(schema, key) or (object,))[0]
        kinds = set(get_args(kind) or (kind,))
        if bool in kinds and not kinds & {int, float}:
            wanted = type_name(schema, key)
            raise UserError(
                f"{key}={value} has the wrong type; it must be {wanted}",
                key=key,
                value=value,
                allowed=wanted,
            )


def check_no_secrets(given: dict[str, Any], schema: type) -> None:
    """Refuse text taken from an environment variable, which a run would save and show.

    Paths and numbers may come from one.
    """
    for key, value in given.items():
        if not (isinstance(value, str) and re.search(r"\$\{\s*oc\.env\b", value)):
            continue
        found = field_of(schema, key)
        if found is None or not (holds_path(found[1]) or not holds_text(found[0])):
            raise UserError(
                f"{key}={value} is not allowed: the variable's content, a password perhaps, would "
                "be saved in config.yaml and manifest.json. Write the value itself; wandb takes "
                "its key from WANDB_API_KEY or `wandb login`",
                key=key,
                value=value,
            )


def holds_text(kind: Any) -> bool:
    options = set(typing.get_args(kind) or (kind,))
    return not options <= {int, float, bool, type(None)}


def concrete(schema: type[Schema], config: DictConfig) -> type[Schema]:
    """Return the training schema for the configured kind of model, or that with all known steps.

    Own data have a path; where they have been read, they have a fingerprint too.
    """
    if schema is not TrainConfig:
        return current(schema)
    if "task" not in config:
        raise UserError("task must be set; for example task=digits", key="task")
    try:
        name = OmegaConf.select(config, "model.name")
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    if name not in TRAIN_SCHEMAS:  # as written: never show the content of an environment variable
        name = dict(leaves(OmegaConf.to_container(config, resolve=False))).get("model.name")
    check_choice("model.name", name, tuple(TRAIN_SCHEMAS))
    schemas, data = TRAIN_SCHEMAS, config.get("data")
    if isinstance(data, DictConfig) and {"path", "test_fraction"} <= set(data):
        schemas = OWN_SCHEMAS if "fingerprint" in data else REQUEST_SCHEMAS
    return cast(type[Schema], schemas[name])


def current(schema: type[Schema]) -> type[Schema]:
    """Return the schema with the keys of all that is registered by now."""
    return getattr(schema, "current", lambda: schema)()


def check_known_keys(
    config: DictConfig, schema: type, prefix: str = "", root: type | None = None
) -> None:
    """Raise UserError if a composed configuration has a key that its schema lacks.

    Below `prefix` it is part of one with the schema `root`.
    """
    fields, root = fields_of(schema), root or schema
    for key in config:
        node = config._get_node(key)
        if key not in fields:
            otherwise = getattr(schema, "otherwise", {})
            raise unknown_key(
                *(f"{prefix}{key!s}", node, tuple(fields)),
                otherwise=otherwise,
                others=elsewhere(str(key), root),
            )
        if isinstance(node, DictConfig) and dataclasses.is_dataclass(kind := split(fields[key])[0]):
            check_known_keys(node, kind, f"{prefix}{key!s}.", root)  # type: ignore[arg-type]
