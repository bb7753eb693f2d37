"""Paired tests of two methods: over the test samples of one training, or over several trainings."""

from collections.abc import Sequence


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (McNemar, 1947), between 0 and 1.

    The arguments count the samples that one method alone has right. If neither is better each of
    them is as likely to be of the one as of the other: the test is that of a binomial distribution
    with p = 1/2. Without any such sample the p-value is 1. Raises ValueError for a negative count.
    """
    from scipy import stats

    if min(only_first, only_second) < 0:
        raise ValueError(f"counts must be at least 0, not {only_first} and {only_second}")
    count = only_first + only_second
    return float(stats.binomtest(only_first, count).pvalue) if count else 1.0


def paired_t(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t test that the mean difference is 0.

    The differences are those of pairs, such as two methods trained with one seed. Equal ones have
    the p-value 0, or 1 if they are 0. Raises ValueError for fewer than two.
    """
    from scipy import stats

    if len(differences) < 2:
        raise ValueError(f"a paired t test needs at least 2 differences, not {len(differences)}")
    if len(set(differences)) == 1:
        return 0.0 if differences[0] else 1.0
    return float(stats.ttest_1samp(differences, 0).pvalue)
