import numpy as np
import pytest
from scipy import stats

from medseg.metrics import agreement, intraclass_correlation


@pytest.fixture
def volumes():
    random = np.random.default_rng(2)
    reference = random.uniform(1, 30, 25)
    return reference * random.uniform(0.8, 1.1, 25) + 0.5, reference


def test_bias_and_limits_by_hand():
    # differences 1, -1, 3: mean 1, sample variance (0 + 4 + 4) / 2 = 4
    found = agreement([11.0, 19.0, 33.0], [10.0, 20.0, 30.0])
    assert (found["n"], found["bias"], found["sd"]) == (3, 1.0, 2.0)
    assert (found["limit_low"], found["limit_high"]) == pytest.approx((1 - 3.92, 1 + 3.92))
    assert found["mean_absolute_error"] == pytest.approx(5 / 3)
    assert found["mean_relative_error"] == pytest.approx((0.1 - 0.05 + 0.1) / 3)


def test_the_interval_of_the_bias_is_that_of_the_t_test(volumes):
    found = agreement(*volumes)
    interval = stats.ttest_rel(*volumes).confidence_interval(0.95)
    assert (found["bias_ci_low"], found["bias_ci_high"]) == pytest.approx((interval.low, interval.high))


def test_the_intraclass_correlation_is_its_closed_form_for_two_raters(volumes):
    # of ICC(A,1) with k = 2 in variances: 2 cov / (var + var + squared offset - var(difference) / n)
    first, second = volumes
    offset, difference = first.mean() - second.mean(), first - second
    below = first.var(ddof=1) + second.var(ddof=1) + offset**2 - difference.var(ddof=1) / len(first)
    expected = 2 * np.cov(first, second)[0, 1] / below
    assert agreement(first, second)["icc"] == pytest.approx(expected)


def test_a_constant_offset_counts_as_disagreement():
    numbers = np.arange(10.0)
    assert intraclass_correlation(numbers, numbers) == pytest.approx(1)
    assert intraclass_correlation(numbers, numbers + 5) < 0.5


def test_the_intraclass_correlation_of_two_of_shrout_and_fleiss_judges():
    # judges 1 and 2 of their table 2; mean squares by hand: cases 73 / 12 ... see the sums below
    first, second = np.array([9, 6, 8, 7, 10, 6.0]), np.array([2, 1, 4, 1, 5, 2.0])
    total = np.concatenate([first, second])
    of_cases = 2 * (((first + second) / 2 - total.mean()) ** 2).sum() / 5
    of_judges = 6 * ((first.mean() - total.mean()) ** 2 + (second.mean() - total.mean()) ** 2)
    rest = (((total - total.mean()) ** 2).sum() - 5 * of_cases - of_judges) / 5
    expected = (of_cases - rest) / (of_cases + rest + 2 / 6 * (of_judges - rest))
    assert intraclass_correlation(first, second) == pytest.approx(expected)


def test_too_few_or_equal_measurements_give_none_and_not_nan():
    assert set(agreement([], []).values()) == {0, None}
    one = agreement([3.0], [2.0])
    assert (one["bias"], one["sd"], one["limit_low"], one["icc"]) == (1.0, None, None, None)
    assert agreement([2.0, 2.0], [2.0, 2.0])["icc"] is None
    assert agreement([2.0], [0.0])["mean_relative_error"] is None


def test_measurements_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="pred has 2 numbers and reference 1; give one of each a case"):
        agreement([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="a number that is not finite; leave that case out of both"):
        agreement([1.0, np.nan], [1.0, 2.0])
