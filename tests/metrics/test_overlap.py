import math

import numpy as np
import pytest

from medseg.metrics import confusion, count_cases, mean_over_cases, region_overlap

REGIONS = {"liver": [1, 2], "tumor": [2]}
SHAPE = (7, 5, 4)


@pytest.fixture
def maps():
    generator = np.random.default_rng(3)
    return generator.integers(0, 3, SHAPE, dtype=np.uint8), generator.integers(0, 3, SHAPE, dtype=np.uint8)


def voxels_of(array, values):
    return {tuple(index) for index in np.argwhere(np.isin(array, values))}


def test_rows_are_the_reference_and_columns_the_prediction():
    label, pred = np.array([[0, 1, 1], [2, 2, 2]]), np.array([[0, 1, 0], [2, 2, 1]])
    assert confusion(pred, label, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 2]]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_every_voxel_is_counted_once(maps, order, dtype):
    pred, label = (np.asarray(array, dtype=dtype, order=order) for array in maps)
    expected = np.zeros((4, 4), dtype=int)
    for index in np.ndindex(SHAPE):
        expected[label[index], pred[index]] += 1
    np.testing.assert_array_equal(confusion(pred, label, 4), expected)
    np.testing.assert_array_equal(confusion(pred, np.ascontiguousarray(label), 4), expected)


@pytest.mark.parametrize("n_classes", [16, 20, 256])
def test_many_classes_do_not_overflow(n_classes):
    label = np.full((3, 2), n_classes - 1, dtype=np.uint8)
    assert confusion(label, label, n_classes)[-1, -1] == 6


def test_ignored_voxels_are_not_counted(maps):
    pred, label = maps
    label[:3] = 255
    np.testing.assert_array_equal(confusion(pred, label, 3, ignore_label=255), confusion(pred[3:], label[3:], 3))
    expected = region_overlap(pred[3:], label[3:], REGIONS, voxel_ml=0.5)
    assert region_overlap(pred, label, REGIONS, voxel_ml=0.5, ignore_label=255) == expected


@pytest.mark.parametrize("region", REGIONS)
def test_overlap_is_that_of_the_voxel_sets(maps, region):
    pred, label = maps
    row = region_overlap(pred, label, REGIONS, voxel_ml=0.006)[region]
    predicted, reference = voxels_of(pred, REGIONS[region]), voxels_of(label, REGIONS[region])
    assert row["dice"] == pytest.approx(2 * len(predicted & reference) / (len(predicted) + len(reference)))
    assert row["iou"] == pytest.approx(len(predicted & reference) / len(predicted | reference))
    assert row["pred_ml"] == pytest.approx(0.006 * len(predicted))
    assert row["reference_ml"] == pytest.approx(0.006 * len(reference))


def test_values_of_no_region_count_as_outside():
    label, pred = np.array([[1, 2, 40000, 7]], dtype=np.uint16), np.array([[1, 40000, 2, 0]], dtype=np.uint16)
    row = region_overlap(pred, label, REGIONS, voxel_ml=1)
    assert row["liver"] == {"dice": 0.5, "iou": pytest.approx(1 / 3), "pred_ml": 2, "reference_ml": 2}
    assert row["tumor"]["dice"] == 0


def test_a_region_at_the_top_of_the_type_is_found():
    label = np.array([[255, 0]], dtype=np.uint8)
    assert region_overlap(label, label, {"mark": [255]}, voxel_ml=1)["mark"]["dice"] == 1


def test_a_value_named_twice_counts_once(maps):
    twice = region_overlap(*maps, {"liver": [1, 2, 2]}, voxel_ml=1)
    assert twice == region_overlap(*maps, {"liver": [1, 2]}, voxel_ml=1)


def test_empty_in_both_is_nan_and_empty_in_one_is_zero():
    nothing, something = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    something[0, 0, 0] = 2
    both = region_overlap(nothing, nothing, REGIONS, voxel_ml=1)["tumor"]
    assert math.isnan(both["dice"])
    assert math.isnan(both["iou"])
    for pred, label in ((nothing, something), (something, nothing)):
        row = region_overlap(pred, label, REGIONS, voxel_ml=1)["tumor"]
        assert (row["dice"], row["iou"]) == (0, 0)


def test_the_mean_is_over_cases_whose_reference_has_the_region():
    rows = [
        {"tumor": {"dice": 0.5, "reference_ml": 3.0}},
        {"tumor": {"dice": 0.0, "reference_ml": 0.0}},  # a false alarm where there is none
        {"tumor": {"dice": math.nan, "reference_ml": 0.0}},
        {"tumor": {"dice": 0.9, "reference_ml": 0.1}},
    ]
    assert mean_over_cases(rows, "tumor", "dice") == pytest.approx(0.7)
    assert math.isnan(mean_over_cases(rows[1:3], "tumor", "dice"))
    assert math.isnan(mean_over_cases([], "tumor", "dice"))


@pytest.mark.parametrize(
    "measure", [lambda *maps: confusion(*maps, 3), lambda *maps: region_overlap(*maps, REGIONS, voxel_ml=1)]
)
def test_different_grids_are_refused(measure, maps):
    with pytest.raises(
        ValueError, match=r"pred is \(7, 5, 3\) and label \(7, 5, 4\); bring the prediction to the label's grid"
    ):
        measure(maps[0][..., :3], maps[1])


@pytest.mark.parametrize(
    "measure", [lambda *maps: confusion(*maps, 3), lambda *maps: region_overlap(*maps, REGIONS, voxel_ml=1)]
)
def test_negative_values_are_refused(measure, maps):
    pred, label = (array.astype(np.int16) for array in maps)
    pred[1, 1, 1] = -1
    with pytest.raises(ValueError, match="pred or label has negative values"):
        measure(pred, label)


def test_values_beyond_the_classes_are_refused(maps):
    pred, label = maps
    label[0, 0, 0] = 5
    with pytest.raises(ValueError, match="label has value 5; expected 0 to 2"):
        confusion(pred, label, 3)
    with pytest.raises(ValueError, match="pred has value 5; expected 0 to 2"):
        confusion(label, pred, 3)


def test_a_case_in_which_the_region_was_not_annotated_does_not_count():
    rows = [
        {"liver": {"dice": 0.9, "reference_ml": 1000.0}},
        {"liver": {"dice": 0.7, "reference_ml": 900.0}, "tumor": {"dice": 0.4, "reference_ml": 2.0}},
        {"tumor": {"dice": 0.6, "reference_ml": 3.0}},
        {"tumor": {"dice": 0.0, "reference_ml": 0.0}},
    ]
    assert mean_over_cases(rows, "tumor", "dice") == pytest.approx(0.5)
    assert mean_over_cases(rows, "liver", "dice") == pytest.approx(0.8)
    assert [count_cases(rows, region) for region in ("liver", "tumor", "kidney")] == [2, 2, 0]
