"""OmegaConf, in about half of the time, without a change of what it returns.

It makes every copy of a value by its constructor, which checks the value once more, and copies each
fact about it by itself. It parses each `${...}` again wherever it stands, and takes each dataclass
apart again for every configuration.
"""

from collections import defaultdict
from copy import deepcopy
from functools import cache
from typing import Any


def hasten() -> None:
    """Do nothing for an OmegaConf that is built differently: it is only slower then."""
    try:
        from omegaconf import DictConfig, _utils, base, nodes
    except ImportError:
        return
    facts = {"ref_type", "object_type", "optional", "key", "flags", "flags_root", "resolver_cache"}
    if set(base.Metadata.__dataclass_fields__) == facts:
        copy_facts_at_once(base.Metadata)
        if set(vars(nodes.AnyNode())) == {"_metadata", "_parent", "_flags_cache", "_val"}:
            copy_values_unchecked(nodes.ValueNode)
        if set(vars(DictConfig({}))) == {"_metadata", "_parent", "_flags_cache", "_content"}:
            copy_groups_unchecked(DictConfig)
    if hasattr(base, "parse") and hasattr(_utils, "parse"):
        base.parse = _utils.parse = cache(base.parse)
    if hasattr(_utils, "get_dataclass_data"):
        take_classes_apart_once(_utils)


def take_classes_apart_once(utils: Any) -> None:
    take_apart = utils.get_dataclass_data
    found: dict[tuple, dict[str, Any]] = {}

    def fields_of(given: Any, allow_objects: bool | None = None) -> dict[str, Any]:
        if not isinstance(given, type):
            return take_apart(given, allow_objects)
        if (given, allow_objects) not in found:
            found[given, allow_objects] = take_apart(given, allow_objects)
        return deepcopy(found[given, allow_objects])

    utils.get_dataclass_data = fields_of


def copy_facts_at_once(metadata: Any) -> None:
    def copied(self: Any, memo: dict) -> Any:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.flags = None if self.flags is None else dict(self.flags)
        found = self.resolver_cache
        other.resolver_cache = deepcopy(found, memo) if found else defaultdict(dict)
        return other

    metadata.__deepcopy__ = copied


def copy_values_unchecked(value_node: Any) -> None:
    def copied(self: Any, memo: dict) -> Any:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _flags_cache=None)
        other.__dict__["_metadata"] = self._metadata.__deepcopy__(memo)
        return other

    for kind in value_node.__subclasses__():
        kind.__deepcopy__ = copied


def copy_groups_unchecked(group: Any) -> None:
    def copied(self: Any, memo: dict) -> Any:
        other = object.__new__(group)
        content = self.__dict__["_content"]
        other.__dict__.update(self.__dict__, _flags_cache=None)
        other.__dict__["_metadata"] = self._metadata.__deepcopy__(memo)
        if isinstance(content, dict):
            other.__dict__["_content"] = {key: within(other, content[key], memo) for key in content}
        return other

    def within(parent: Any, node: Any, memo: dict) -> Any:
        above = node.__dict__["_parent"]
        node.__dict__["_parent"] = None  # else the copy of a list takes all that is above it along
        try:
            other = deepcopy(node, memo)
        finally:
            node.__dict__["_parent"] = above
        other.__dict__["_parent"] = parent
        return other

    group.__deepcopy__ = copied
