import math

import numpy as np
import pytest
from label_pairs import PAIRS, REGIONS
from scipy import stats

from medseg.metrics import bootstrap_means, case_metrics, pooled, region_overlap, summary


@pytest.fixture
def values():
    return np.random.default_rng(4).beta(5, 2, 40)


def rows_of(values):
    return [{"dice": value} for value in values]


def test_mean_spread_and_middle_are_numpys(values):
    found = summary(rows_of(values))["dice"]
    assert found["n"] == 40
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (found["median"], found["min"], found["max"]) == pytest.approx(
        (np.median(values), values.min(), values.max())
    )
    assert found["left_out"] == 0


def test_the_interval_is_that_of_scipys_bootstrap(values):
    found = summary(rows_of(values), resamples=20000)["dice"]
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, random_state=1)
    interval = theirs.confidence_interval
    width = interval.high - interval.low
    assert found["ci_low"] == pytest.approx(interval.low, abs=0.05 * width)
    assert found["ci_high"] == pytest.approx(interval.high, abs=0.05 * width)


def test_the_same_seed_gives_the_same_interval(values):
    assert summary(rows_of(values), seed=3) == summary(rows_of(values), seed=3)
    assert summary(rows_of(values), seed=3) != summary(rows_of(values), seed=4)


def test_copies_of_a_patient_do_not_narrow_the_interval(values):
    once = summary(rows_of(values))["dice"]
    patients = [f"p{index // 5}" for index in range(200)]
    copied = summary(rows_of(np.repeat(values, 5)), patients=patients)["dice"]
    naive = summary(rows_of(np.repeat(values, 5)))["dice"]
    assert (copied["ci_high"] - copied["ci_low"]) == pytest.approx(once["ci_high"] - once["ci_low"], rel=0.08)
    assert (naive["ci_high"] - naive["ci_low"]) < 0.6 * (once["ci_high"] - once["ci_low"])


def test_each_resampled_mean_is_that_of_whole_patients():
    values, patients = np.array([0.0, 10.0, 1.0]), np.array([7, 7, 9])
    # two draws of the patients: {7, 7} -> 5, {7, 9} -> 11 / 3, {9, 9} -> 1
    means = bootstrap_means(values, patients, resamples=500)
    assert {round(mean, 6) for mean in means} == {5.0, round(11 / 3, 6), 1.0}


def test_what_is_not_defined_is_left_out_counted_and_never_nan():
    rows = [{"a": 1.0, "b": None, "text": "x"}, {"a": None, "b": None, "text": "y"}, {"a": math.nan}, {"a": math.inf}]
    found = summary(rows)
    assert (found["a"]["n"], found["a"]["mean"], found["a"]["left_out"]) == (1, 1.0, 3)
    assert (found["a"]["sd"], found["a"]["ci_low"], found["a"]["ci_high"]) == (None, None, None)
    assert (found["b"]["n"], found["b"]["mean"], found["b"]["left_out"]) == (0, None, 2)
    assert "text" not in found
    assert summary([]) == {}


def test_one_patient_has_no_interval():
    found = summary(rows_of([0.2, 0.4]), patients=["p", "p"])["dice"]
    assert (found["n"], found["ci_low"], found["ci_high"]) == (2, None, None)
    assert found["mean"] == pytest.approx(0.3)


def test_a_column_asked_for_is_there_even_if_no_row_has_it():
    assert summary([{"a": 1.0}], names=["b"])["b"]["n"] == 0


def test_patients_must_be_as_many_as_rows():
    with pytest.raises(ValueError, match="1 patients for 2 rows; give each row its patient"):
        summary(rows_of([1.0, 2.0]), patients=["p"])


def test_pooled_overlap_is_that_of_all_voxels_in_one_map():
    pairs = [pair for pair in PAIRS if pair.pred.ndim == 3]
    whole = pooled([case_metrics(pair.pred, pair.reference, pair.spacing, REGIONS, definitions=[]) for pair in pairs])
    pred, reference = (
        np.concatenate([getattr(pair, name).ravel() for pair in pairs])[None] for name in ("pred", "reference")
    )
    together = region_overlap(pred, reference, REGIONS, voxel_ml=1)
    for region, row in together.items():
        assert whole[f"{region}_dice_global"] == pytest.approx(row["dice"])
        assert whole[f"{region}_iou_global"] == pytest.approx(row["iou"])
    assert whole["pixel_accuracy_global"] == pytest.approx((pred == reference).mean())


def test_pooled_lesions_count_the_false_alarms_of_cases_without_lesions():
    reference, nothing = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    reference[2:4, 2:4] = 1
    pairs = [(reference, reference), (reference, nothing), (nothing, reference)]
    cases = [case_metrics(*pair, (1, 1), {"spot": [1]}, lesion_region="spot", definitions=[]) for pair in pairs]
    found = pooled(cases)
    assert found["lesion_recall_global"] == 0.5
    assert found["lesion_precision_global"] == 0.5
    assert found["spot_dice_global"] == pytest.approx(2 * 4 / 16)
    per_case = summary([case.row() for case in cases])
    assert (per_case["spot_dice"]["mean"], per_case["spot_dice"]["n"]) == (0.5, 2)
    assert (per_case["spot_dice_all"]["mean"], per_case["spot_dice_all"]["n"]) == (pytest.approx(1 / 3), 3)


def test_a_region_is_pooled_over_the_cases_that_have_it_annotated():
    label = np.zeros((6, 6), np.uint8)
    label[1:3, 1:3], label[4, 4] = 1, 2
    wrong = np.zeros_like(label)
    cases = [
        case_metrics(label, label, (1, 1), REGIONS, definitions=[]),
        case_metrics(wrong, label, (1, 1), REGIONS, labeled=["liver"], definitions=[]),
    ]
    found = pooled(cases)
    assert found["tumor_dice_global"] == 1
    assert found["liver_recall_global"] == 0.5
    assert found["pixel_accuracy_global"] == 1  # of the case that has all regions


def test_cases_of_other_regions_are_not_pooled():
    label = np.ones((3, 3), np.uint8)
    cases = [case_metrics(label, label, (1, 1), {"a": values}) for values in ([1], [2])]
    with pytest.raises(ValueError, match="the cases have different regions; judge all with the same"):
        pooled(cases)
    assert pooled([]) == {}
