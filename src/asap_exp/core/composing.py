"""From `conf/` and a command line to a checked configuration."""

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from asap_exp.attention import ATTENTIONS, attention_options
from asap_exp.core.config import LARGEST_SETTING, TRAIN_SCHEMAS, TrainConfig
from asap_exp.core.errors import UserError, check_choice, check_range
from asap_exp.core.files import read_text
from asap_exp.core.locations import expanded

Schema = TypeVar("Schema")

FREE_FORM = {"attention": ("name", *sorted({o for a in ATTENTIONS for o in attention_options(a)}))}
"""Keys below which a registry, not a dataclass, says what is allowed."""

MOST_UPDATES = 10**6
"""Of an attention's whole numbers, all of which are counts."""
LARGEST = 3e38
"""What single precision holds."""

# For conf/hydra, which Hydra reads before a configuration is parsed.
OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed package, else beside `src/`."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if folder.is_dir():
            return folder
    raise UserError(f"the folder conf/ was not found in {package}; is the installation complete?")


def compose(stage: str, overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """The configuration of `python -m asap_exp.STAGE OVERRIDES`, checked; no Hydra app needed."""
    check_override_keys(overrides, schema)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            config = hydra.compose(stage, list(overrides))
        except HydraException as error:
            raise UserError(str(error)) from error
    return parse(config, schema)


def quoted(key: str, value: object) -> str:
    """`key=value` for a text value of any letters, quoted as Hydra's grammar asks for."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value)).replace("'", "\\'")
    return f"{key}='{text}'"


def load_saved(file: Path, schema: type[Schema]) -> Schema:
    """The configuration that a run saved: plain values, so that nothing in it is resolved."""
    try:
        saved = OmegaConf.create(read_text(file))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(saved, DictConfig):
        raise UserError(f"{file} is damaged: it holds no configuration")
    for key, value in leaves(OmegaConf.to_container(saved, resolve=False)):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{file} is not as it was saved: {key}={value} would be looked up on this machine. "
                "A saved configuration holds plain values; put the value in its place"
            )
    return parse(saved, schema)


def parse(config: DictConfig, schema: type[Schema]) -> Schema:
    """`config` as a `schema`; UserError names the key, the value and what is allowed."""
    plain = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    config = OmegaConf.create(plain, flags={"allow_objects": True})
    given = dict(leaves(OmegaConf.to_container(config, resolve=False)))
    schema = concrete(schema, config)
    check_known_keys(config, schema, "")
    check_no_secrets(given, schema)
    try:
        OmegaConf.resolve(config)
        parsed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), config))
    except MissingMandatoryValue as error:
        raise UserError(
            f"{error.full_key} must be set; for example {error.full_key}=VALUE"
        ) from error
    except ValidationError as error:
        key = error.full_key or ""
        value = OmegaConf.select(config, key) if key else None
        wanted = type_name(schema, key)
        if value is None:
            raise UserError(f"{key} is missing; it must be {wanted}") from error
        shown = given.get(key, value)  # as it was written: a variable's content is nobody's
        raise UserError(f"{key}={shown} has the wrong type; it must be {wanted}") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    check_values(dataclasses.asdict(cast(Any, parsed)))
    expand_homes(parsed)
    return cast(Schema, parsed)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below `tree` with its dotted key."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree


def check_no_secrets(given: dict[str, Any], schema: type) -> None:
    """Refuses a variable of the environment as a text, which a run saves and shows.

    A path or a number may be one.
    """
    for key, value in given.items():
        if not (isinstance(value, str) and re.search(r"\$\{\s*oc\.env\b", value)):
            continue
        found = field_of(schema, key)
        if found is None or not (found.metadata.get("path") or not holds_text(found.type)):
            raise UserError(
                f"{key}={value} is not allowed: the variable's content, a password perhaps, would "
                "be saved in config.yaml and manifest.json. Write the value itself; wandb takes "
                "its key from WANDB_API_KEY or `wandb login`"
            )


def holds_text(declared: Any) -> bool:
    options = set(typing.get_args(declared) or (declared,))
    return not options <= {int, float, bool, type(None)}


def check_values(tree: dict[str, Any]) -> None:
    """Refuses what no part of the program could hold: infinite and enormous numbers, NUL."""
    for key, value in leaves(tree):
        if isinstance(value, int) and key.startswith("attention."):
            check_range(key, value, maximum=MOST_UPDATES)
        elif isinstance(value, float) and key.startswith("attention."):
            check_range(key, value, maximum=LARGEST_SETTING)
        elif isinstance(value, int):
            check_range(key, value, maximum=2**63 - 1)
            check_range(key, value, minimum=-(2**63))
        elif isinstance(value, float):
            check_range(key, value, minimum=-LARGEST, maximum=LARGEST)
        elif isinstance(value, str) and ("\0" in value or "${" in value):
            raise UserError(f"{key}={value!r} is not allowed; it must be text without NUL and ${{")
    if "attention" in tree:
        check_choice("attention.name", tree["attention"].get("name"), tuple(sorted(ATTENTIONS)))


def expand_homes(config: Any, prefix: str = "") -> None:
    """Puts the home directory in place of ~ wherever a schema says that a value is a path."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            expand_homes(value, f"{prefix}{field.name}.")
        elif field.metadata.get("path") and isinstance(value, str):
            setattr(config, field.name, expanded(f"{prefix}{field.name}", value))


def concrete(schema: type[Schema], config: DictConfig) -> type[Schema]:
    """Of a training configuration, the schema of its kind of model."""
    if schema is not TrainConfig:
        return schema
    try:
        name = OmegaConf.select(config, "model.name")
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    if name not in TRAIN_SCHEMAS:  # as it was written: a variable's content is nobody's
        name = dict(leaves(OmegaConf.to_container(config, resolve=False))).get("model.name")
    check_choice("model.name", name, tuple(TRAIN_SCHEMAS))
    return cast(type[Schema], TRAIN_SCHEMAS[name])


def check_override_keys(overrides: Sequence[str], schema: type) -> None:
    """Refuses `key=`, `+key=` and `++key=` alike where no stage configuration has that key.

    Hydra accepts any key after a plus sign, and its refusal of the others names no alternative.
    """
    for argument in overrides:
        if argument.startswith("-") or not ("=" in argument or argument.startswith(("~", "+"))):
            continue  # one of Hydra's own flags, or the value of one
        override = parsed_override(argument)
        key = override.key_or_group
        if key.startswith("hydra.") and str(override.value()).strip("'\"").startswith("~"):
            raise UserError(
                f"{key}={override.value()} is not allowed: Hydra would make a folder named ~; give "
                "the whole path"
            )
        if (folder := conf_dir() / key.split("@")[0]).is_dir():
            check_option(override, folder)
        elif not (override.is_delete() or key.startswith("hydra")):
            check_override_key(key, override.value(), schema)


def parsed_override(argument: str) -> Override:
    """By Hydra's grammar; UserError says how to quote what it does not read."""
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


def check_option(override: Override, folder: Path) -> None:
    """Refuses `group=null`, `group=3` and the like, at which Hydra ends in a traceback."""
    if override.is_delete() or override.is_sweep_override():
        return
    given = override.value()
    names = given if isinstance(given, list) else [given]
    if not all(isinstance(name, str) for name in names):
        options = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        value = override.get_value_element_as_str()
        raise UserError(
            f"{override.key_or_group}={value} is not allowed; choose one of {options}, or leave "
            "the argument out"
        )


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
        elif depth and siblings is None and parts[0] not in FREE_FORM:
            raise UserError(f"{path}={value}: {parent} is one value and has no keys below it")
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
    found = field_of(schema, path)
    declared: Any = object if found is None else found.type
    if path.endswith("]"):
        (declared,) = typing.get_args(declared) or (object,)
    if typing.get_origin(declared) is list:
        return "a list, for example [a,b]"
    if typing.get_origin(declared) is dict:
        return "a group of keys"
    if dataclasses.is_dataclass(declared):
        return f"a group of the keys {', '.join(f.name for f in dataclasses.fields(declared))}"
    options = [t for t in (typing.get_args(declared) or (declared,)) if t is not type(None)]
    words = " or ".join(names.get(getattr(t, "__name__", str(t)), str(t)) for t in options)
    return f"{words} (or null)" if type(None) in typing.get_args(declared) else words


def field_of(schema: type, path: str) -> dataclasses.Field | None:
    """The field of the dotted `path`, or of the list that it is an entry of; None where free."""
    declared: Any = schema
    found = None
    for part in path.split("[")[0].split("."):
        if not dataclasses.is_dataclass(declared):
            return None
        found = next((f for f in dataclasses.fields(declared) if f.name == part), None)
        if found is None:
            return None
        declared = typing.get_type_hints(declared)[part]
    return found
