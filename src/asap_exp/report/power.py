"""Smallest differences that a comparison would find: by its test samples, or by its seeds.

What is smaller may be there, and was not to be seen.
"""

import math
import statistics

LEVEL, POWER = 0.05, 0.8
"""Two-sided level of the tests, and the chance with which a difference is to be found."""


def detectable_by_samples(samples: int, disagreement: float) -> float | None:
    """Return the smallest difference of accuracy, as a share, that McNemar's test would find.

    `disagreement` is the share of the `samples` that one of the methods alone has right. By
    Miettinen's and Connor's approximation (Connor, Biometrics 43, 1987): n samples find d with
    sqrt(n) d = z sqrt(s) + h sqrt(s - d^2), s the disagreement, z and h the normal quantiles of
    1 - LEVEL/2 and POWER. None if even d = s, all of it in one direction, would not be found.
    Raises ValueError for arguments outside their ranges.
    """
    if samples < 1 or not 0 <= disagreement <= 1:
        raise ValueError(f"no comparison: samples={samples}, disagreement={disagreement}")
    normal = statistics.NormalDist()
    z, h = normal.inv_cdf(1 - LEVEL / 2), normal.inv_cdf(POWER)
    # Squared, the equation is quadratic in d: the larger root is its solution, if there is one.
    inside = samples + h**2 - z**2
    if disagreement == 0 or inside < 0:
        return None
    root = z * math.sqrt(samples) + h * math.sqrt(inside)
    found = math.sqrt(disagreement) * root / (samples + h**2)
    return found if found <= disagreement else None


def detectable_by_seeds(seeds: int, deviation: float) -> float | None:
    """Return the smallest mean difference that a paired t test over `seeds` pairs would find.

    `deviation` is the standard deviation of the differences, in whose unit the result is. By the
    noncentral t distribution, for a deviation that is known to be this one. None for a single
    pair. Raises ValueError for arguments outside their ranges.
    """
    from scipy import special

    if seeds < 1 or deviation < 0:
        raise ValueError(f"no comparison: seeds={seeds}, deviation={deviation}")
    if seeds < 2:
        return None
    critical = special.stdtrit(seeds - 1, 1 - LEVEL / 2)
    # The chance to find it in the wrong direction, below 1e-5, is left out.
    shift = special.nctdtrinc(seeds - 1, 1 - POWER, critical)
    return float(shift) * deviation / math.sqrt(seeds)
