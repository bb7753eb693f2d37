"""Comparisons of two methods of one task: difference, paired test, and what it could have found."""

import statistics
from dataclasses import dataclass

import numpy as np

from asap_exp.core.errors import UserError
from asap_exp.core.records.right import RightSamples
from asap_exp.report.groups import Group
from asap_exp.report.paired import mcnemar, paired_t
from asap_exp.report.paper_maps import Measured, measured
from asap_exp.report.power import LEVEL, detectable_by_samples, detectable_by_seeds

FEWEST_SEEDS = 3
"""Seeds from which on a test over seeds is made; with two it would find almost nothing."""

ALIKE = 1e-9
"""Deviation of differences below which they are equal but for rounding."""


@dataclass(frozen=True)
class Comparison:
    """First method minus second, in the unit of the metric as stored.

    `p` is None without a test, and `how` says which test was made, or why none. `detectable` is the
    smallest difference that this test finds, None if unknown or if it finds none; with `bound`, a
    test would find this difference or a smaller one. `samples` are those of McNemar's test, None
    without one.
    """

    difference: float
    p: float | None
    how: str
    detectable: float | None = None
    bound: bool = False
    samples: int | None = None

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def told(self) -> bool:
        """True if the difference is no chance: by the test, or beyond what it finds at most."""
        beyond = self.bound and self.detectable is not None
        return self.significant or (beyond and abs(self.difference) > (self.detectable or 0))

    def finds(self, difference: float) -> bool:
        """Return True if a difference of this size would have been found."""
        if self.detectable is not None:
            return self.detectable <= difference
        if self.samples is None:
            return False
        # The methods differ on too few samples to find anything. Were they this far apart, they
        # would differ on this share of the samples at least, which are enough for it or are not.
        return detectable_by_samples(self.samples, difference) is not None


def compare(group: Group, first: str, second: str) -> Comparison | None:
    """Compare two methods on the records that have both; None if none has.

    ASAP may have several maps of one training, each of which is a pair, and be of another record.

    With at least `FEWEST_SEEDS` seeds a paired t test over them, unless their differences are all
    the same: that a few seeds fall on one number of samples is no certainty. With fewer seeds
    McNemar's exact test over the test samples, of each seed and map by itself, and the largest of
    its p-values: that says nothing of how far another seed would be. Where one is for the first and
    another for the second method, the p-value is 1, however sure each is.
    """
    pairs = pairs_of(group, first, second)
    if not pairs:
        return None
    metric = group.first.trained_for.metric
    differences = [getattr(one.row, metric) - getattr(two.row, metric) for one, two in pairs]
    mean, trainings = statistics.mean(differences), len({one.record.run for one, _ in pairs})
    if trainings >= FEWEST_SEEDS:
        deviation, seeds = statistics.stdev(differences), f"{trainings} seeds"
        if deviation < ALIKE:
            return Comparison(mean, None, f"{seeds} that differ alike, no deviation for a t test")
        found = detectable_by_seeds(trainings, deviation)
        return Comparison(mean, paired_t(differences), f"t, {seeds}", found)
    if group.first.trained_for.of_tokens:
        return Comparison(mean, None, f"fewer than {FEWEST_SEEDS} seeds, and no samples of tokens")
    if any(each.record.right is None for pair in pairs for each in pair):
        why = f"fewer than {FEWEST_SEEDS} seeds, and no samples stored"
        return Comparison(mean, None, why, agreement_bound(pairs), bound=True)
    tests = [of_samples(one, two) for one, two in pairs]
    finds = [test.detectable for test in tests]
    words = "seeds" if trainings > 1 else "maps"
    contradict = min(test.difference for test in tests) < 0 < max(test.difference for test in tests)
    return Comparison(
        mean,
        1.0 if contradict else max(test.p for test in tests if test.p is not None),
        tests[0].how + (f", and the {words} contradict each other" if contradict else ""),
        None if None in finds else max(find for find in finds if find is not None),
        samples=min(test.samples for test in tests if test.samples is not None),
    )


def pairs_of(group: Group, first: str, second: str) -> list[tuple[Measured, Measured]]:
    """Return the pairs of rows of both methods, by training, if their metric was measured."""
    metric = group.first.trained_for.metric
    mine, theirs = (by_run(group, name) for name in (first, second))
    return [
        (one, two)
        for run, maps in mine.items()
        for one in maps
        for two in theirs.get(run, [])
        if getattr(one.row, metric) is not None and getattr(two.row, metric) is not None
    ]


def by_run(group: Group, name: str) -> dict[str, list[Measured]]:
    return {maps[0].record.run: maps for maps in measured(group, name)}


def agreement_bound(pairs: list[tuple[Measured, Measured]]) -> float | None:
    """Return what McNemar's test would find at the latest, by the agreement with the teacher.

    Where both methods predict the teacher's class both are right or both are wrong. So of one alone
    no more samples can be right than those on which one of them differs from the teacher. None
    without an agreement.
    """
    found = []
    for one, two in pairs:
        if one.row.agreement is None or two.row.agreement is None:
            return None
        share = min(2 - one.row.agreement - two.row.agreement, 1.0)
        found.append(detectable_by_samples(one.record.test.rows, share))
    return None if None in found else max(find for find in found if find is not None)


def of_samples(one: Measured, two: Measured) -> Comparison:
    """Compare two rows of one teacher's records by its test samples."""
    mine, theirs = one.record.right, two.record.right
    assert mine is not None
    assert theirs is not None
    return paired_samples(mine, one.row.key, theirs, two.row.key)


def paired_samples(
    mine: RightSamples, my_key: str, theirs: RightSamples, their_key: str
) -> Comparison:
    """Compare two rows, of one record or of two, sample by sample.

    Raises UserError unless both are of the same test samples.
    """
    if (mine.samples, mine.labels_sha256) != (theirs.samples, theirs.labels_sha256):
        raise UserError(
            f"{my_key} and {their_key} cannot be compared sample by sample: the records are of "
            f"{mine.samples} and {theirs.samples} test samples with labels "
            f"{mine.labels_sha256[:8]}... and {theirs.labels_sha256[:8]}...; evaluate both on the "
            "same test split"
        )
    first, second = mine.right(my_key), theirs.right(their_key)
    mine_alone = int(np.count_nonzero(first & ~second))
    theirs_alone = int(np.count_nonzero(second & ~first))
    samples = mine.samples
    return Comparison(
        (mine_alone - theirs_alone) / samples,
        mcnemar(mine_alone, theirs_alone),
        f"McNemar, {samples:,} samples",
        detectable_by_samples(samples, (mine_alone + theirs_alone) / samples),
        samples=samples,
    )
