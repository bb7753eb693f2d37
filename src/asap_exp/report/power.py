"""Smallest differences that a comparison would find: by its test samples, or by its seeds.

What is smaller may be there, and was not to be seen.
"""

import math
import statistics
from collections.abc import Callable

from asap_exp.report.paired import student_t

LEVEL, POWER = 0.05, 0.8
"""Two-sided level of the tests, and the chance with which a difference is to be found."""
STEPS = 60
"""Halvings of an interval: beyond double precision."""
GRID = 4000
"""Points of the integral over the deviations that samples may have."""
NORMAL = statistics.NormalDist()


def detectable_by_samples(
    samples: int, disagreement: float, level: float = LEVEL, power: float = POWER
) -> float | None:
    """Return the smallest difference of accuracy, as a share, that McNemar's test would find.

    `disagreement` is the share of the `samples` that one of the methods alone has right. By
    Miettinen's and Connor's approximation (Connor, Biometrics 43, 1987): n samples find d with
    sqrt(n) d = z(1 - level/2) sqrt(s) + z(power) sqrt(s - d^2), s the disagreement. None if even
    d = s, all of it in one direction, would not be found. Raises ValueError for arguments outside
    their ranges.
    """
    if samples < 1 or not 0 <= disagreement <= 1:
        raise ValueError(f"no comparison: samples={samples}, disagreement={disagreement}")
    check_chances(level, power)
    low, high = NORMAL.inv_cdf(1 - level / 2), NORMAL.inv_cdf(power)

    def surplus(difference: float) -> float:
        rest = max(disagreement - difference**2, 0.0)
        needed = low * math.sqrt(disagreement) + high * math.sqrt(rest)
        return math.sqrt(samples) * difference - needed

    if disagreement == 0 or surplus(disagreement) < 0:
        return None
    return root(surplus, 0.0, disagreement)


def detectable_by_seeds(
    seeds: int, deviation: float, level: float = LEVEL, power: float = POWER
) -> float | None:
    """Return the smallest mean difference that a paired t test over `seeds` pairs would find.

    `deviation` is the standard deviation of the differences, in whose unit the result is. Exact, by
    the noncentral t distribution, for a deviation that is known to be this one. None for a single
    pair. Raises ValueError for arguments outside their ranges.
    """
    if seeds < 1 or deviation < 0:
        raise ValueError(f"no comparison: seeds={seeds}, deviation={deviation}")
    check_chances(level, power)
    if seeds < 2:
        return None
    degrees = seeds - 1
    critical = t_quantile(1 - level / 2, degrees)

    def surplus(shift: float) -> float:
        return chance_beyond(critical, shift, degrees) - power

    high = 1.0
    while surplus(high) < 0:
        high *= 2
    return root(surplus, 0.0, high) * deviation / math.sqrt(seeds)


def check_chances(level: float, power: float) -> None:
    if not (0 < level < 1 and 0.5 <= power < 1):
        raise ValueError(f"level={level} and power={power} must lie in 0..1, power from 0.5")


def t_quantile(chance: float, degrees: int) -> float:
    """Return the t below which Student's t lies with a `chance` of at least 1/2."""
    high = 1.0
    while student_t(high, degrees) < chance:
        high *= 2
    return root(lambda t: student_t(t, degrees) - chance, 0.0, high)


def chance_beyond(critical: float, shift: float, degrees: int) -> float:
    """Return P(|T| > critical) for T noncentral with `shift`: (Z + shift) / sqrt(V / degrees).

    The mean over V, chi-squared with `degrees`, of the normal probability given V: an integral over
    w = log(V / degrees) by the midpoint rule.
    """
    half = degrees / 2
    constant = half * math.log(half) - math.lgamma(half)
    # The density of w is exp(half (w - e^w) + constant), below 1e-16 outside.
    low, high = -80 / degrees - 4, math.log(80 / degrees + 4)
    step = (high - low) / GRID
    total = 0.0
    for number in range(GRID):
        w = low + (number + 0.5) * step
        bound = critical * math.exp(w / 2)
        beyond = NORMAL.cdf(shift - bound) + NORMAL.cdf(-shift - bound)
        total += math.exp(half * (w - math.exp(w)) + constant) * beyond
    return total * step


def root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function is 0 between `low` and `high`, by halving."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high
