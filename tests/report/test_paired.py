"""Paired tests and what they can find, against known values, SciPy and simulated comparisons."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from asap_exp.report.paired import mcnemar, paired_t
from asap_exp.report.power import LEVEL, POWER, detectable_by_samples, detectable_by_seeds

# Student's data on two drugs that prolong sleep (Student, 1908): extra hours of ten patients.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]


def test_mcnemar_of_a_textbook() -> None:
    """2 (1 + 10) / 2^10 by hand; 5 of 20 is the sign test's 0.0414 of tables."""
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(5, 15) == pytest.approx(0.0413895, abs=1e-7)
    assert mcnemar(0, 6) == pytest.approx(2 / 64)


@pytest.mark.parametrize("pair", [(0, 0), (3, 3), (1, 0), (4, 5)])
def test_mcnemar_of_even_counts_is_one(pair: tuple[int, int]) -> None:
    assert mcnemar(*pair) == 1.0


@pytest.mark.parametrize("pair", [(0, 1), (2, 11), (40, 70), (300, 371), (9, 4000)])
def test_mcnemar_is_the_sum_of_binomial_coefficients(pair: tuple[int, int]) -> None:
    count = sum(pair)
    tail = Fraction(sum(math.comb(count, k) for k in range(pair[0] + 1)), 2 ** (count - 1))
    assert mcnemar(*pair) == pytest.approx(float(min(1, tail)), rel=1e-9)
    assert mcnemar(*pair) == pytest.approx(mcnemar(*pair[::-1]), rel=1e-9)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="at least 0, not 3 and -1"):
        mcnemar(3, -1)


def test_paired_t_of_students_own_data() -> None:
    """t = 4.0621 with 9 degrees of freedom, p = 0.002833."""
    assert paired_t(SLEEP) == pytest.approx(0.00283289, abs=1e-8)


def test_paired_t_without_deviation() -> None:
    assert (paired_t([0.0, 0.0]), paired_t([0.5, 0.5])) == (1.0, 0.0)
    with pytest.raises(ValueError, match="at least 2 differences, not 1"):
        paired_t([0.1])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 40])
def test_what_seeds_find_is_found_four_times_of_five(seeds: int) -> None:
    """By SciPy's noncentral t; a deviation of 0.3 scales it."""
    found = detectable_by_seeds(seeds, 0.3)
    assert found is not None
    shift, critical = found / 0.3 * math.sqrt(seeds), stats.t.ppf(0.975, seeds - 1)
    # The other tail is below 1e-5; SciPy has no number for it with a single degree of freedom.
    assert stats.nct.sf(critical, seeds - 1, shift) == pytest.approx(0.8, abs=2e-5)


def test_one_seed_finds_nothing() -> None:
    assert detectable_by_seeds(1, 0.3) is None
    assert detectable_by_seeds(3, 0.0) == 0.0


@pytest.mark.parametrize(("samples", "disagreement"), [(10_000, 0.2), (25_000, 0.08), (540, 0.1)])
def test_what_samples_find_is_found_four_times_of_five(samples: int, disagreement: float) -> None:
    """Simulated: the exact test is somewhat more careful than the approximation."""
    found = detectable_by_samples(samples, disagreement)
    assert found is not None
    draw, half = np.random.default_rng(0), found / 2
    chances = [disagreement / 2 + half, disagreement / 2 - half, 1 - disagreement]
    counts = draw.multinomial(samples, chances, 1000)
    share = np.mean([mcnemar(int(first), int(second)) < 0.05 for first, second, _ in counts])
    assert 0.75 < share < 0.84


@pytest.mark.parametrize("samples", [4, 5, 30, 540, 10_000])
def test_what_samples_find_solves_the_approximation(samples: int) -> None:
    z, h = NormalDist().inv_cdf(1 - LEVEL / 2), NormalDist().inv_cdf(POWER)
    for share in (0.01, 0.2, 0.97, 1.0):
        found = detectable_by_samples(samples, share)
        reached = math.sqrt(samples) * share
        needed = z * math.sqrt(share) + h * math.sqrt(share - share**2)
        assert (found is None) == (reached < needed)
        if found is not None:
            needed = z * math.sqrt(share) + h * math.sqrt(share - found**2)
            assert math.sqrt(samples) * found == pytest.approx(needed)


def test_samples_find_nothing_where_methods_hardly_differ() -> None:
    assert detectable_by_samples(10_000, 0.0) is None
    assert detectable_by_samples(100, 0.03) is None, "three samples"
    assert detectable_by_samples(100, 1.0) is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda: detectable_by_samples(0, 0.1),
        lambda: detectable_by_samples(9, 1.1),
        lambda: detectable_by_seeds(0, 0.1),
        lambda: detectable_by_seeds(3, -0.1),
    ],
)
def test_what_is_no_comparison_is_refused(call) -> None:
    with pytest.raises(ValueError, match="no comparison"):
        call()
