"""Paired tests of two methods: over the test samples of one training, or over several trainings.

Pure functions of the standard library: SciPy is no dependency of this project.
"""

import math
import statistics
from collections.abc import Sequence


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar, 1947), between 0 and 1.

    The arguments count the samples that one method alone has right. If neither is better each of
    them is as likely to be of the one as of the other: the test is that of a binomial distribution
    with p = 1/2. Without any such sample the p-value is 1. Raises ValueError for a negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts must be at least 0, not {only_first} and {only_second}")
    count = only_first + only_second
    term = tail = 1
    for k in range(min(only_first, only_second)):
        term = term * (count - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**count)


def paired_t(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t test that the mean difference is 0.

    The differences are those of pairs, such as two methods trained with one seed. Equal ones have
    the p-value 0, or 1 if they are 0. Raises ValueError for fewer than two.
    """
    count = len(differences)
    if count < 2:
        raise ValueError(f"a paired t test needs at least 2 differences, not {count}")
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * (1 - student_t(abs(mean) / deviation * math.sqrt(count), count - 1))


def student_t(t: float, degrees: int) -> float:
    """Return the probability that Student's t with so many degrees of freedom is at most `t`.

    By the finite sums for whole degrees: Abramowitz and Stegun (1964), 26.7.3 and 26.7.4. Raises
    ValueError for `degrees` below 1.
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, not {degrees}")
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = math.sin(angle) * total
    return 0.5 + ((angle + inside) / math.pi if odd else inside / 2)
