"""Cases of the fused operators: every combination on a GPU, every pair in the interpreter."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest
import torch

FIXTURES = ("heads", "kernels", "route")


def pairs_of(**axes: Sequence[Any] | Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrise by combinations in which any two values of any two axes meet.

    A GPU, where a case takes milliseconds, gets all of them. Values may be given by the words that
    name them; those of a fixture are handed to it.
    """
    values = [tuple(a.values()) if isinstance(a, Mapping) else tuple(a) for a in axes.values()]
    words = [tuple(map(str, axis)) for axis in axes.values()]
    sizes = [range(len(axis)) for axis in values]
    chosen = list(product(*sizes)) if torch.cuda.is_available() else covering(sizes)
    cases = [
        pytest.param(
            *(axis[number] for axis, number in zip(values, case, strict=True)),
            id="-".join(axis[number] for axis, number in zip(words, case, strict=True)),
        )
        for case in chosen
    ]
    indirect = [name for name in axes if name in FIXTURES]
    return pytest.mark.parametrize(tuple(axes), cases, indirect=indirect)


def covering(sizes: Sequence[range]) -> list[tuple[int, ...]]:
    """Few combinations that hold every pair, each the one with most pairs not yet held."""
    every = list(product(*sizes))
    missing = set().union(*(pairs(case) for case in every))
    chosen = []
    while missing:
        best = max(every, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return sorted(chosen)


def pairs(case: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(combinations(enumerate(case), 2))
