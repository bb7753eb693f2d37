"""The registered methods: a name maps to a builder of the timed call and of its reference.

A name may hold whole numbers: `@method("asap_{slices}")` builds `asap_8` with slices=8.
"""

import copy
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asap_exp.attention import attention_origin, build_attention
from asap_exp.benchmark.flops import Recipe
from asap_exp.benchmark.inputs import Inputs, Place
from asap_exp.benchmark.shape import Shape
from asap_exp.core.attention_options import known_attentions
from asap_exp.core.errors import UserError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

Reference = Callable[[Place], Attend]
"""Function that returns the exact attention for the selected heads of one sample."""


def of_any_heads(attend: Attend) -> Reference:
    """Return the reference of a method whose heads have no weights or duals of their own."""
    return lambda place: attend


class Unavailable(RuntimeError):
    """Raised when a method cannot run here; the message says why."""


@dataclass(frozen=True)
class Operator:
    """A way to run a method: `attend` on q, k, v of up to the setting's batch, in `context`."""

    attend: Attend
    context: Callable[[], AbstractContextManager] = nullcontext
    compiled: bool = False


@dataclass(frozen=True)
class Method:
    """A column of the table: the fastest of its operators, each checked against `reference`.

    `reference` returns the function of q, k, v of some heads of a sample in float64. Without a
    `recipe`, no arithmetic is counted. With `tf32`, float32 matrices are multiplied as TF32.
    """

    label: str
    backend: str
    operators: Mapping[str, Operator]
    reference: Reference
    recipe: Recipe | None = None
    tf32: bool = False


@dataclass(frozen=True)
class Setting:
    """The setting of a row, for which methods are built."""

    shape: Shape
    device: torch.device
    backend: str
    seed: int
    recorded: Inputs | None = None
    """Inputs to fit maps and compute duals from; without them, maps and duals are random."""


Builder = Callable[..., Method]
BUILDERS: dict[str, Builder] = {}

PACKAGES: dict[Builder, str] = {}
"""Package of another library that a builder needs; the extra `peers` installs it."""

INSTALL = "pip install -e '.[peers]'"

OPTIONAL = "?"
"""Last character of a name that is left out where its package is not installed."""


def method(template: str, *, package: str | None = None) -> Callable[[Builder], Builder]:
    """Register a builder, called with a Setting and the whole numbers that the name holds."""

    def add(builder: Builder) -> Builder:
        BUILDERS[template] = builder
        if package is not None:
            PACKAGES[builder] = package
        return builder

    return add


def installed(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of methods that are installed, and why others are left out.

    Only a method whose name ends in `?` is left out; without it, UserError says what to install.
    """
    names, left_out = [], []
    for word in words:
        name = word.removesuffix(OPTIONAL)
        package = PACKAGES.get(find(name)[0])
        if package is None or version(package) is not None:
            names.append(name)
            continue
        reason = f"{package} is not installed; the extra `peers` has it: {INSTALL}"
        if name == word:
            raise UserError(f"the method {name} cannot run: {reason}")
        left_out.append(f"{name} is left out: {reason}")
    if not names:
        raise UserError(f"no method is left to time: {'; '.join(left_out)}")
    return list(dict.fromkeys(names)), left_out


def versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return the version of each other library that these methods need."""
    packages = (PACKAGES.get(find(name)[0]) for name in names)
    return {package: version(package) for package in packages if package is not None}


def origins(names: Sequence[str]) -> dict[str, Any]:
    """Return by name where each attention of another package comes from, as manifests say it."""
    own = {name: attention_origin(name) for name in names if name in known_attentions()}
    return {name: plugin for name, each in own.items() for plugin in each.get("plugins", [])}


def version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def build(name: str, setting: Setting) -> Method:
    builder, numbers = find(name)
    return builder(setting, **numbers)


def find(name: str) -> tuple[Builder, dict[str, int]]:
    """Return the builder of `name` and the numbers in it; UserError lists the known methods."""
    for template, builder in BUILDERS.items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[1-9][0-9]*)", re.escape(template))
        match = re.fullmatch(pattern, name)
        if match:
            return builder, {key: int(number) for key, number in match.groupdict().items()}
    if name in known_attentions():
        return lambda setting: attention_method(name, setting), {}
    known = ", ".join([*BUILDERS, *known_attentions()])
    raise UserError(f"the method {name} is not known; choose from {known}")


def attention_method(name: str, setting: Setting) -> Method:
    """Build a registered attention with default options; its reference is itself in float64."""
    attend = build_attention({"name": name}).to(setting.device).requires_grad_(False)
    exact = copy.deepcopy(attend).double()
    return Method(f"attention {name}", "auto", {name: Operator(attend)}, of_any_heads(exact))
