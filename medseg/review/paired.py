"""Tests of two measurements of the same cases: does the second differ from the first, and by how much."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.metrics.summaries import CONFIDENCE, RESAMPLES, bootstrap_means

SIGNIFICANT = 0.05
MOST_EXACT = 300  # pairs; beyond, the normal approximation is as good and the exact one slow
SAME = 1e-9  # differences below are rounding, and would be ranked as if they were none


@dataclass(frozen=True)
class PairedTest:
    """What the pairs say.

    Attributes:
        n: pairs of cases.
        patients: whom they are of; scans of one patient are averaged before they are tested.
        ties: patients with the same value twice, which the test leaves out.
        mean_a: mean of the first values.
        mean_b: mean of the second values.
        difference: mean of second minus first.
        ci_low: lower end of the difference's 95 % interval (bootstrap by patient); None with fewer than two patients.
        ci_high: its upper end.
        p: two-sided, Wilcoxon signed-rank.
        method: how p was found; "none" where all pairs are ties.
        favors: 1 if the ranks favor larger second values, -1 if smaller ones, 0 if neither.
        least_p: the smallest p that so many patients can give.
    """

    n: int
    patients: int
    ties: int
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    p: float
    method: Literal["exact", "approximate", "none"]
    favors: int
    least_p: float


def paired_test(
    values_a: Sequence[float],
    values_b: Sequence[float],
    patients: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Compare two measurements of the same cases.

    Args:
        values_a: first values, finite.
        values_b: second values of the same cases, in their order.
        patients: who each case is of; each case is a patient of its own if not given.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there are no pairs, or the lengths differ.

    Reference:
        Wilcoxon, "Individual Comparisons by Ranking Methods", 1945 (patients without a difference are left out); the
        interval: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    first, second = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if not len(first) or len(first) != len(second) or (patients is not None and len(patients) != len(first)):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be paired; give each case both values")
    whose = np.unique(np.asarray(patients if patients is not None else range(len(first))), return_inverse=True)[1]
    differences = second - first
    of_patients = np.bincount(whose, weights=differences) / np.bincount(whose)
    changed = of_patients[np.abs(of_patients) > SAME]
    p, method, favors = signed_rank(changed)
    low = high = None
    if len(of_patients) > 1:
        means = bootstrap_means(differences, whose, resamples=resamples, seed=seed)
        low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]).tolist()
    return PairedTest(
        n=len(first),
        patients=len(of_patients),
        ties=len(of_patients) - len(changed),
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        p=p,
        method=method,
        favors=favors,
        least_p=min(1.0, 2.0 ** (1 - len(of_patients))),
    )


def signed_rank(differences: NDArray[np.float64]) -> tuple[float, Literal["exact", "approximate", "none"], int]:
    """Two-sided p of Wilcoxon's signed-rank test, how it was found, and the sign that the ranks favor.

    Exact also where differences share a rank: over all signs of the ranks that there are, as a permutation test.

    Args:
        differences: none of them 0.
    """
    if not len(differences):
        return 1.0, "none", 0
    from scipy.stats import norm, rankdata

    ranks = np.rint(2 * rankdata(np.abs(differences).round(9))).astype(np.int64)  # doubled: shared ranks end in .5
    total = int(ranks.sum())
    above = int(ranks[differences > 0].sum())
    smaller, favors = min(above, total - above), int(np.sign(2 * above - total))
    if len(ranks) <= MOST_EXACT:
        chances = _rank_sum_chances(ranks)
        return min(1.0, 2 * float(chances[: smaller + 1].sum())), "exact", favors
    spread = np.sqrt(float(np.square(ranks).sum())) / 2
    return min(1.0, 2 * float(norm.cdf((smaller + 1 - total / 2) / spread))), "approximate", favors  # 1: continuity


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number, in the order given.

    Reference:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _rank_sum_chances(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chance of each sum of ranks where each rank counts or does not, with a chance of one half."""
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in ranks:
        with_it = np.zeros_like(chances)
        with_it[rank:] = chances[:-rank]
        chances = (chances + with_it) / 2
    return chances
