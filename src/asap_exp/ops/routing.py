"""How one of an operator's routes is chosen, forced or recorded; `routes` has the lists."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from asap_exp.ops.call import Call

Reason = Callable[[Call], str | None]
"""Why a route does not take a call; None if it does."""


def never(call: Call) -> str | None:
    """Refuses nothing."""
    return None


def nothing(call: Call) -> list[tuple[str, Call]]:
    """Call no further operator."""
    return []


@dataclass(frozen=True)
class Route:
    """One way to compute an operator."""

    name: str
    launch: Callable[..., Any]
    refusal: Reason = never
    """Returns why it cannot take the call."""
    slower: Reason = never
    """Returns why a later route of the list is faster, as measured on an H200."""
    then: Callable[[Call], Iterable[tuple[str, Call]]] = nothing
    """The operators that the launch calls in turn, for `explain`."""


class Taken(NamedTuple):
    """An operator of `ROUTES` and the name of the route that it took."""

    operator: str
    route: str


ROUTES: dict[str, tuple[Route, ...]] = {}
"""The routes of each operator in the order in which they are asked."""

_forced: tuple[frozenset[str], ...] = ()
_records: tuple[list[Taken], ...] = ()


def choose(operator: str, call: Call) -> Route:
    """Return the first route of the operator that takes the call."""
    if torch.compiler.is_compiling() or _forced or _records:
        return _choose(operator, call)
    try:
        return _remembered(operator, call)
    except TypeError:  # symbolic sizes have no hash
        return _choose(operator, call)


@functools.lru_cache(maxsize=4096)
def _remembered(operator: str, call: Call) -> Route:
    return first(ROUTES[operator], call)


def first(routes: tuple[Route, ...], call: Call) -> Route:
    """Return the first route that neither refuses the call nor is slower than a later one."""
    for route in routes:
        if route.refusal(call) is None and route.slower(call) is None:
            return route
    raise RuntimeError(f"no route takes {call}; the last one of a list must take everything")


def _choose(operator: str, call: Call) -> Route:
    routes, names = ROUTES[operator], forced_names(operator)
    route = first(routes, call) if names is None else first_of(operator, names, call)
    if not torch.compiler.is_compiling():
        for record in _records:
            record.append(Taken(operator, route.name))
    return route


def forced_names(operator: str) -> frozenset[str] | None:
    """Return the names to which the innermost `force` limits the operator, or None."""
    own = {route.name for route in ROUTES[operator]}
    for names in reversed(_forced):
        if names & own:
            return names
    return None


def first_of(operator: str, names: frozenset[str], call: Call) -> Route:
    """Return the first route of these names that can take the call, however slow."""
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
    """Limit operators within the context to the routes of these names.

    Every operator with at least one route so named takes the first of them that can, even where
    another is faster; the others are not affected. The calls fail with the refusals if none can.
    ValueError for a name that no operator has.
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

    Of a compiled model, the list has what its operators choose as they run, not what was chosen as
    it was traced.
    """
    global _records
    record: list[Taken] = []
    before, _records = _records, (*_records, record)
    try:
        yield record
    finally:
        _records = before
