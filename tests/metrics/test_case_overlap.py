import itertools

import numpy as np
import pytest
import SimpleITK
import torch
from label_pairs import PAIRS, REGIONS
from monai.metrics import compute_dice, compute_iou
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from medseg.metrics import case_metrics, class_scores, confusion, region_overlap, voxel_scores

OVERLAP = ("dice", "iou", "precision", "recall")


@pytest.fixture(scope="module")
def cases():
    return [case_metrics(pair.pred, pair.reference, pair.spacing, REGIONS, definitions=[]) for pair in PAIRS]


def voxel_sets(pair, values):
    return ({tuple(index) for index in np.argwhere(np.isin(label, values))} for label in (pair.pred, pair.reference))


def ratio(part, whole):
    return part / whole if whole else None


def test_every_count_and_ratio_is_that_of_the_voxel_sets(cases):
    for pair, case in zip(PAIRS, cases, strict=True):
        for name, values in REGIONS.items():
            pred, reference = voxel_sets(pair, values)
            found, both = case.regions[name], len(pred & reference)
            counts = both, len(pred - reference), len(reference - pred), pair.pred.size - len(pred | reference)
            assert tuple(found[key] for key in ("tp", "fp", "fn", "tn")) == counts, pair.name
            expected = {
                "dice": ratio(2 * both, len(pred) + len(reference)),
                "iou": ratio(both, len(pred | reference)),
                "precision": ratio(both, len(pred)),
                "recall": ratio(both, len(reference)),
            }
            assert {key: found[key] for key in OVERLAP} == pytest.approx(
                expected if reference else dict.fromkeys(expected)
            )
            size = np.prod(pair.spacing) / (1000 if pair.pred.ndim == 3 else 1)
            unit = "ml" if pair.pred.ndim == 3 else "mm2"
            assert found[f"pred_{unit}"] == pytest.approx(len(pred) * size)
            assert found[f"reference_{unit}"] == pytest.approx(len(reference) * size)


def test_overlap_is_scikit_learns(cases):
    for pair, case in zip(PAIRS, cases, strict=True):
        for name, values in REGIONS.items():
            truth, pred = (np.isin(label, values).ravel() for label in (pair.reference, pair.pred))
            if not truth.any():
                continue
            judges = {"dice": f1_score, "iou": jaccard_score, "recall": recall_score}
            if pred.any():
                judges["precision"] = precision_score
            for key, judge in judges.items():
                assert case.regions[name][key] == pytest.approx(judge(truth, pred)), (pair.name, key)


def test_figures_over_classes_are_scikit_learns(cases):
    for pair, case in zip(PAIRS, cases, strict=True):
        truth, pred = pair.reference.ravel(), pair.pred.ravel()
        present, predicted = np.unique(truth), np.unique(pred)
        expected = {
            "pixel_accuracy": accuracy_score(truth, pred),
            "mean_pixel_accuracy_recall": recall_score(truth, pred, labels=present, average="macro"),
            "mean_pixel_accuracy_precision": precision_score(truth, pred, labels=predicted, average="macro"),
            "mean_iou": jaccard_score(truth, pred, labels=np.union1d(present, predicted), average="macro"),
            "frequency_weighted_iou": jaccard_score(truth, pred, labels=present, average="weighted"),
        }
        assert case.overall == pytest.approx(expected), pair.name
        np.testing.assert_array_equal(case.confusion, confusion_matrix(truth, pred, labels=[0, 1, 2]))


def test_overlap_is_simpleitks(cases):
    for pair, case in zip(PAIRS, cases, strict=True):
        judge = SimpleITK.LabelOverlapMeasuresImageFilter()
        judge.Execute(
            *(SimpleITK.GetImageFromArray((label == 2).astype(np.uint8)) for label in (pair.reference, pair.pred))
        )
        if case.regions["tumor"]["tp"] + case.regions["tumor"]["fn"]:
            assert case.regions["tumor"]["dice"] == pytest.approx(judge.GetDiceCoefficient(1)), pair.name
            assert case.regions["tumor"]["iou"] == pytest.approx(judge.GetJaccardCoefficient(1)), pair.name


def test_overlap_is_monais_where_the_reference_has_the_region(cases):
    for pair, case in zip(PAIRS, cases, strict=True):
        for name, values in REGIONS.items():
            pred, reference = (
                torch.tensor(np.isin(label, values))[None, None] for label in (pair.pred, pair.reference)
            )
            if reference.any():
                assert case.regions[name]["dice"] == pytest.approx(float(compute_dice(pred, reference)), rel=1e-6)
                assert case.regions[name]["iou"] == pytest.approx(float(compute_iou(pred, reference)), rel=1e-6)


def test_the_case_and_region_overlap_say_the_same(cases):
    for pair, case in zip(PAIRS, cases, strict=True):
        rows = region_overlap(pair.pred, pair.reference, REGIONS, voxel_ml=float(np.prod(pair.spacing)) / 1000)
        for name, row in rows.items():
            if row["reference_ml"]:
                assert (case.regions[name]["dice"], case.regions[name]["iou"]) == (row["dice"], row["iou"])


def test_the_two_mean_pixel_accuracies_by_hand():
    # reference 3 of class 0, 1 of class 1; predicted 2 of class 0, 2 of class 1, right: 2 and 1
    scores = class_scores(np.array([[2, 1], [0, 1]]))
    assert scores["mean_pixel_accuracy_recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["mean_pixel_accuracy_precision"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["pixel_accuracy"] == 3 / 4
    assert scores["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["frequency_weighted_iou"] == pytest.approx(3 / 4 * 2 / 3 + 1 / 4 * 1 / 2)


def test_nothing_to_judge_gives_none_and_not_nan():
    assert set(class_scores(np.zeros((3, 3), np.int64)).values()) == {None}
    assert set(voxel_scores(0, 0, 0).values()) == {None}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int64, bool])
@pytest.mark.parametrize("orders", itertools.product("CF", repeat=2))
def test_type_and_order_in_memory_change_nothing(dtype, orders):
    pair = PAIRS[0]
    maps = [label > 0 if dtype is bool else label for label in (pair.pred, pair.reference)]
    regions = {"liver": [1]} if dtype is bool else REGIONS
    expected = case_metrics(*(label.astype(np.int32) for label in maps), pair.spacing, regions)
    given = [np.asarray(label, dtype=dtype, order=order) for label, order in zip(maps, orders, strict=True)]
    assert case_metrics(*given, pair.spacing, regions).row() == pytest.approx(expected.row())


def test_values_of_no_region_are_background():
    reference, pred = np.array([[0, 1, 9, 300]], np.int16), np.array([[40, 1, 0, 1]], np.int16)
    case = case_metrics(pred, reference, (1, 1), {"mark": [1]})
    assert case.confusion == [[2, 1], [0, 1]]
    assert case.overall["pixel_accuracy"] == 3 / 4


def test_a_label_value_above_255_is_a_class():
    label = np.zeros((4, 4), np.uint16)
    label[1, 1], label[2, 2] = 300, 301
    pred = np.where(label == 301, 300, label)
    found = case_metrics(pred, label, (1, 1), {"mark": [300]}).regions["mark"]
    assert (found["tp"], found["fp"], found["fn"]) == (1, 1, 0)


def test_a_region_of_the_background_is_counted_over_the_whole_map():
    label = np.zeros((6, 7), np.uint8)
    label[2, 2] = 1
    found = case_metrics(np.zeros_like(label), label, (1, 1), {"outside": [0], "mark": [1]}).regions["outside"]
    assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (41, 1, 0, 0)


def test_confusion_of_the_case_is_that_of_the_function():
    pair = PAIRS[2]
    case = case_metrics(pair.pred, pair.reference, pair.spacing, REGIONS, definitions=[])
    np.testing.assert_array_equal(case.confusion, confusion(pair.pred, pair.reference, 3))
