"""Hydra, in about half of the time, without a change of what it composes.

It reads each file of `conf/` again for every configuration, and merges the same files again where
another value is given. Here a process does both once, and again if a file has changed. It parses
each argument once, and collects all choices for `${...}` only where something is interpolated.
"""

import copy
import pickle
from functools import cache
from pathlib import Path
from typing import Any


def hasten() -> None:
    """Do nothing for a Hydra that is built differently: it is only slower then."""
    try:
        from hydra._internal import defaults_list
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra._internal.config_repository import ConfigRepository
        from hydra.core.object_type import ObjectType
        from hydra.core.override_parser import overrides_parser
    except ImportError:
        return
    if hasattr(ConfigRepository, "_find_object_source"):
        read_each_file_once(ConfigRepository, ObjectType.CONFIG)
        if hasattr(ConfigLoaderImpl, "_compose_config_from_defaults_list"):
            merge_the_same_files_once(ConfigLoaderImpl, ObjectType.CONFIG)
    if hasattr(overrides_parser, "create_functions"):
        overrides_parser.create_functions = cache(overrides_parser.create_functions)
        parse_each_argument_once(overrides_parser.OverridesParser)
    if hasattr(defaults_list, "_create_interpolation_map"):
        collect_choices_where_asked(defaults_list)


def read_each_file_once(repository: Any, is_config: Any) -> None:
    load = repository.load_config
    read: dict[tuple, bytes] = {}

    def load_config(self: Any, config_path: str) -> Any:
        key = version_of(self, config_path, is_config)
        if key is None:
            return load(self, config_path)
        if key not in read:
            read[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(read[key])  # a copy: what is composed of it is changed

    repository.load_config = load_config


def version_of(repository: Any, config_path: str, is_config: Any) -> tuple | None:
    """Return what names the content of a file, or None if there is no such file."""
    source = repository._find_object_source(config_path, is_config)
    if source is None:
        return None
    key: tuple = (source.path, source.provider, config_path)
    if source.scheme() == "file":
        file = Path(source.path, source._normalize_file_name(config_path))
        key += (file.stat().st_mtime_ns,)
    return key


def merge_the_same_files_once(loader: Any, is_config: Any) -> None:
    merge = loader._compose_config_from_defaults_list
    merged: dict[tuple, Any] = {}

    def compose(self: Any, defaults: list, repo: Any) -> Any:
        key = tuple(
            (str(default), version_of(repo.delegate, default.config_path, is_config))
            for default in defaults
        )
        if key not in merged:
            merged[key] = merge(self, defaults, repo)
        return copy.deepcopy(merged[key])  # values are then put into it

    loader._compose_config_from_defaults_list = compose


def parse_each_argument_once(parser: Any) -> None:
    parse = parser.parse_rule
    parsed: dict[tuple, bytes] = {}

    def parse_rule(self: Any, text: str, rule: str) -> Any:
        if (text, rule) not in parsed:
            parsed[text, rule] = pickle.dumps(parse(self, text, rule))
        return pickle.loads(parsed[text, rule])

    parser.parse_rule = parse_rule


def collect_choices_where_asked(defaults_list: Any) -> None:
    collect = defaults_list._create_interpolation_map

    def choices(overrides: Any, defaults: list, self_added: bool) -> Any:
        if any(default.is_interpolation() for default in defaults):
            return collect(overrides, defaults, self_added)
        return None

    defaults_list._create_interpolation_map = choices
