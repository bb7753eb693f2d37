"""From `conf/` and a command line to a checked configuration."""

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from asap_exp.attention import ATTENTIONS, attention_options
from asap_exp.config import TRAIN_SCHEMAS, TrainConfig
from asap_exp.errors import UserError, check_choice

Schema = TypeVar("Schema")

FREE_FORM = {"attention": ("name", *sorted({o for a in ATTENTIONS for o in attention_options(a)}))}
"""Keys below which a registry, not a dataclass, says what is allowed."""


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed package, else beside `src/`."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parents[1] / "conf"):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder conf/ was not found beside {here}; is the installation complete?")


def compose(stage: str, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """The configuration of `python -m asap_exp.STAGE OVERRIDES`, checked; no Hydra app needed."""
    check_override_keys(overrides, schema)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return parse(hydra.compose(stage, list(overrides)), schema)


def parse(config: DictConfig, schema: type[Schema]) -> Schema:
    """`config` as a `schema`; UserError names the key, the value and what is allowed."""
    plain = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    config = OmegaConf.create(plain, flags={"allow_objects": True})
    schema = concrete(schema, config)
    check_known_keys(config, schema, "")
    try:
        OmegaConf.resolve(config)
        return cast(
            Schema, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), config))
        )
    except MissingMandatoryValue as error:
        raise UserError(
            f"{error.full_key} must be set; for example {error.full_key}=VALUE"
        ) from error
    except ValidationError as error:
        value = OmegaConf.select(config, error.full_key) if error.full_key else None
        if value is None:
            raise UserError(
                f"{error.full_key} is missing; it must be {type_name(schema, error.full_key or '')}"
            ) from error
        wanted = type_name(schema, error.full_key or "")
        raise UserError(
            f"{error.full_key}={value} has the wrong type; it must be {wanted}"
        ) from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error


def concrete(schema: type[Schema], config: DictConfig) -> type[Schema]:
    """Of a training configuration, the schema of its kind of model."""
    if schema is not TrainConfig:
        return schema
    name = OmegaConf.select(config, "model.name")
    check_choice("model.name", name, tuple(TRAIN_SCHEMAS))
    return cast(type[Schema], TRAIN_SCHEMAS[name])


def check_override_keys(overrides: Sequence[str], schema: type) -> None:
    """Refuses `key=`, `+key=` and `++key=` alike where no stage configuration has that key.

    Hydra accepts any key after a plus sign, and its refusal of the others names no alternative.
    """
    groups = {str(path.parent.relative_to(conf_dir())) for path in conf_dir().rglob("*.yaml")}
    given = [argument for argument in overrides if not argument.startswith("-")]
    for override in OverridesParser.create().parse_overrides(given):
        key = override.key_or_group
        if override.is_delete() or key.startswith("hydra") or key.split("@")[0] in groups:
            continue
        check_override_key(key, override.value(), schema)


def check_override_key(key: str, value: Any, schema: type) -> None:
    """Before the kind of model is known, a key of any kind passes."""
    refusals = []
    for kind in TRAIN_SCHEMAS.values() if schema is TrainConfig else (schema,):
        try:
            return check_key(key, value, kind)
        except UserError as refusal:
            refusals.append(refusal)
    raise max(refusals, key=lambda refusal: "Did you mean" in str(refusal))


def check_known_keys(config: DictConfig, schema: type, prefix: str) -> None:
    types = typing.get_type_hints(schema)
    for key in config:
        path = f"{prefix}{key!s}"
        if path.split(".")[0] in FREE_FORM:
            continue
        node = config._get_node(key)
        if key not in types:
            check_key(path, node, schema if not prefix else None, siblings=tuple(types))
        elif isinstance(node, DictConfig) and dataclasses.is_dataclass(types[key]):
            check_known_keys(node, types[key], f"{path}.")


def check_key(
    path: str, value: Any, schema: type | None, siblings: tuple[str, ...] | None = None
) -> None:
    """Raises UserError unless the dotted `path` is a key of `schema`."""
    parts = path.split(".")
    for depth, part in enumerate(parts):
        parent = ".".join(parts[:depth])
        if parent in FREE_FORM:
            allowed: tuple[str, ...] = FREE_FORM[parent]
        elif siblings is not None and depth == len(parts) - 1:
            allowed = siblings
        elif dataclasses.is_dataclass(schema):
            allowed = tuple(typing.get_type_hints(schema))
        else:
            continue
        if part not in allowed:
            close = difflib.get_close_matches(part, allowed, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            where = f" below {parent}" if parent else ""
            raise UserError(
                f"{path}={value}: there is no key {part}{where}.{hint} "
                f"Allowed{where}: {', '.join(allowed)}"
            )
        hints = typing.get_type_hints(schema) if dataclasses.is_dataclass(schema) else {}
        schema = hints.get(part)


def type_name(schema: type, path: str) -> str:
    """The declared type of the dotted `path`, in words."""
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    declared: Any = schema
    for part in path.split("."):
        hints = typing.get_type_hints(declared) if dataclasses.is_dataclass(declared) else {}
        declared = hints.get(part, object)
    if typing.get_origin(declared) is list:
        return "a list, for example [a,b]"
    options = [t for t in (typing.get_args(declared) or (declared,)) if t is not type(None)]
    words = " or ".join(names.get(getattr(t, "__name__", str(t)), str(t)) for t in options)
    return f"{words} (or null)" if type(None) in typing.get_args(declared) else words
