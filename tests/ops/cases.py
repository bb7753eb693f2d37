"""Cases for the fused operators: all combinations on a GPU, all pairs in the interpreter."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest
import torch

FIXTURES = ("heads", "kernels", "route")


def pairs_of(**axes: Sequence[Any] | Mapping[str, Any]) -> pytest.MarkDecorator:
    """Parametrise by combinations in which any two values of any two axes meet.

    A GPU, where a case takes milliseconds, runs all combinations. Values may be given as a mapping
    from the names in test ids; the values of a fixture are passed to it.
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
    """Choose a few combinations that cover every pair, each with the most uncovered pairs."""
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
