"""Choosing, forcing and recording the routes of an operator; `routes` has the lists."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from asap_exp.ops.call import Call

Reason = Callable[[Call], str | None]
"""Function that returns why a route does not take a call, or None if it does."""


def never(call: Call) -> str | None:
    """Refuse nothing."""
    return None


def nothing(call: Call) -> list[tuple[str, Call]]:
    """Call no further operator."""
    return []


@dataclass(frozen=True)
class Route:
    """A way to compute an operator."""

    name: str
    launch: Callable[..., Any]
    refusal: Reason = never
    """Returns why the route cannot take the call, or None if it can."""
    slower: Reason = never
    """Returns why a later route is faster, as measured on an H200, or None if none is."""
    then: Callable[[Call], Iterable[tuple[str, Call]]] = nothing
    """Operators that the launch calls in turn, for `explain`."""


class Taken(NamedTuple):
    """An operator of `ROUTES` and the name of the route that it took."""

    operator: str
    route: str


ROUTES: dict[str, tuple[Route, ...]] = {}
"""Routes of each operator, in the order in which they are tried."""

_forced: tuple[frozenset[str], ...] = ()
_records: tuple[list[Taken], ...] = ()


def choose(operator: str, call: Call) -> Route:
    """Return the first route of the operator that takes the call."""
    if torch.compiler.is_compiling() or _forced or _records:
        return _choose(operator, call)
    try:
        return _remembered(operator, call)
    except TypeError:  # symbolic sizes are not hashable
        return _choose(operator, call)


@functools.lru_cache(maxsize=4096)
def _remembered(operator: str, call: Call) -> Route:
    return first(ROUTES[operator], call)


def first(routes: tuple[Route, ...], call: Call) -> Route:
    """Return the first route that neither refuses the call nor is slower than a later one."""
    for route in routes:
        if route.refusal(call) is None and route.slower(call) is None:
            return route
    raise RuntimeError(f"no route takes {call}; the last route of an operator must take every call")


def _choose(operator: str, call: Call) -> Route:
    routes, names = ROUTES[operator], forced_names(operator)
    route = first(routes, call) if names is None else first_of(operator, names, call)
    if not torch.compiler.is_compiling():
        for record in _records:
            record.append(Taken(operator, route.name))
    return route


def forced_names(operator: str) -> frozenset[str] | None:
    """Return the names to which the innermost `force` restricts the operator, or None."""
    own = {route.name for route in ROUTES[operator]}
    for names in reversed(_forced):
        if names & own:
            return names
    return None


def first_of(operator: str, names: frozenset[str], call: Call) -> Route:
    """Return the first route with one of these names that can take the call, however slow."""
    refusals = []
    for route in ROUTES[operator]:
        if route.name in names:
            refusal = route.refusal(call)
            if refusal is None:
                return route
            refusals.append(f"{route.name!r}: {refusal}")
    raise RuntimeError(
        f"the forced route of {operator} cannot take the call: {'; '.join(refusals)}"
    )


@contextmanager
def force(*names: str) -> Iterator[None]:
    """Restrict operators within the context to the routes with these names.

    An operator that has at least one such route takes the first of them that can compute the call,
    even if another is faster; if none can, the call fails with their refusals. Other operators are
    not affected. Raises ValueError for a name that no operator has.
    """
    global _forced
    known = sorted({route.name for routes in ROUTES.values() for route in routes})
    for name in names:
        if name not in known:
            raise ValueError(f"no route is called {name!r}; the routes are {', '.join(known)}")
    before, _forced = _forced, (*_forced, frozenset(names))
    try:
        yield
    finally:
        _forced = before


@contextmanager
def recorded() -> Iterator[list[Taken]]:
    """Collect the routes that are taken within the context, in order, one entry per call.

    For a compiled model, the list holds what its operators choose as they run, not what was chosen
    during tracing.
    """
    global _records
    record: list[Taken] = []
    before, _records = _records, (*_records, record)
    try:
        yield record
    finally:
        _records = before
