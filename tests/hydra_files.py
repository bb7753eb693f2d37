"""Hydra, made a third faster without a change of what it composes.

It reads each file of `conf/` again for every configuration. Here a process reads it once, and again
if it has changed.
"""

import pickle
from pathlib import Path
from typing import Any


def read_each_file_once() -> None:
    """Do nothing for a Hydra that is built differently: it is only slower then."""
    try:
        from hydra._internal.config_repository import ConfigRepository
        from hydra.core.object_type import ObjectType
    except ImportError:
        return
    load = ConfigRepository.load_config
    read: dict[tuple, bytes] = {}

    def load_config(self: Any, config_path: str) -> Any:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None:
            return load(self, config_path)
        key: tuple = (source.path, source.provider, config_path)
        if source.scheme() == "file":
            file = Path(source.path, source._normalize_file_name(config_path))
            key += (file.stat().st_mtime_ns,)
        if key not in read:
            read[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(read[key])  # a copy: what is composed of it is changed

    ConfigRepository.load_config = load_config  # type: ignore[method-assign]
