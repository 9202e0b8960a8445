from itertools import product

import numpy as np
import pytest
import scipy.stats

from medseg.review.paired import MOST_EXACT, holm, paired_test, signed_rank


def noisy_pair(seed, n=60, gain=0.0):
    random = np.random.default_rng(seed)
    level = random.normal(0.85, 0.06, n)
    return level + random.normal(0, 0.03, n), level + gain + random.normal(0, 0.03, n)


@pytest.mark.parametrize("n", [1, 3, 8, 25, 50])
def test_p_without_shared_ranks_is_scipys_exact_one(n):
    differences = np.random.default_rng(n).normal(0.2, 1, n)
    p, method, favors = signed_rank(differences)
    assert method == "exact"
    assert p == pytest.approx(scipy.stats.wilcoxon(differences, method="exact").pvalue, abs=1e-12)
    assert favors in (-1, 0, 1)


@pytest.mark.parametrize("seed", range(6))
def test_p_with_shared_ranks_is_that_of_all_signs_tried(seed):
    differences = np.random.default_rng(seed).choice([-0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4], 9)
    ranks = scipy.stats.rankdata(np.abs(differences).round(6))
    sums = np.array([np.dot(ranks, signs) for signs in product((0, 1), repeat=len(ranks))])
    seen = ranks[differences > 0].sum()
    tails = min(np.mean(sums <= seen), np.mean(sums >= seen))
    assert signed_rank(differences)[0] == pytest.approx(min(1.0, 2 * tails), abs=1e-12)


def test_many_pairs_are_approximated_as_by_scipy():
    differences = np.random.default_rng(0).normal(0.05, 1, MOST_EXACT + 50)
    p, method, _ = signed_rank(differences)
    assert method == "approximate"
    expected = scipy.stats.wilcoxon(differences, correction=True, mode="approx").pvalue
    assert p == pytest.approx(expected, rel=1e-6)


def test_the_ranks_say_whom_they_favor():
    assert signed_rank(np.array([1.0, 2.0, 3.0]))[2] == 1
    assert signed_rank(np.array([-1.0, -2.0, 3.0]))[2] == 0
    assert signed_rank(np.array([1.0, -2.0, -3.0]))[2] == -1


def test_equal_values_are_ties_and_no_difference():
    test = paired_test([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (test.ties, test.p, test.method) == (3, 1.0, "none")
    assert (test.difference, test.ci_low, test.ci_high) == (0, 0, 0)


def test_scans_of_one_patient_count_once():
    first, second = noisy_pair(3, n=10, gain=0.05)
    alone = paired_test(first, second)
    repeated = paired_test(np.repeat(first, 4), np.repeat(second, 4), [f"p{i}" for i in np.repeat(range(10), 4)])
    assert (repeated.n, repeated.patients) == (40, 10)
    assert repeated.p == alone.p
    assert (repeated.ci_low, repeated.ci_high) == pytest.approx((alone.ci_low, alone.ci_high))


def test_the_interval_is_seeded_and_near_students():
    first, second = noisy_pair(1, gain=0.02)
    one, two, other = (paired_test(first, second, seed=seed) for seed in (5, 5, 6))
    assert one == two
    assert one.ci_low != other.ci_low
    student = scipy.stats.ttest_rel(second, first).confidence_interval()
    assert (one.ci_low, one.ci_high) == pytest.approx((student.low, student.high), abs=0.002)


def test_few_patients_cannot_be_significant():
    test = paired_test([0.1, 0.2, 0.3, 0.4], [0.6, 0.8, 0.9, 0.95])
    assert test.p == test.least_p == 0.125


def test_a_single_pair_has_no_interval():
    assert paired_test([0.1], [0.2]).ci_low is None


@pytest.mark.parametrize(("first", "second"), [([], []), ([0.1], [0.2, 0.3])])
def test_what_cannot_be_paired_is_refused(first, second):
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_test(first, second)


def test_holm_is_stepwise_and_never_falls():
    # by hand: 0.01 * 4; 0.015 * 3; then 0.04 * 2 and 0.03 * 2 in the order 0.03, 0.04
    assert holm([0.04, 0.01, 0.03, 0.015]) == pytest.approx([0.06, 0.04, 0.06, 0.045])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])


def test_of_200_copies_with_noise_about_one_in_twenty_is_called_different():
    found = [paired_test(*noisy_pair(seed), seed=seed, resamples=400) for seed in range(200)]
    wrong = sum(test.p < 0.05 for test in found)
    beside = sum(not test.ci_low <= 0 <= test.ci_high for test in found)
    # 10 are expected; a rate of 5 % gives 2 to 19 of 200 in 99.6 of 100 such studies
    assert 2 <= wrong <= 19
    assert 2 <= beside <= 22  # the percentile bootstrap is a little short


def test_a_gain_of_two_points_is_nearly_always_found_at_60():
    found = [paired_test(*noisy_pair(seed, gain=0.02), resamples=50) for seed in range(100)]
    assert sum(test.p < 0.05 and test.favors == 1 for test in found) >= 90
