import numpy as np
import pytest
import torch
from label_pairs import PAIRS
from monai.metrics import compute_panoptic_quality
from scipy import ndimage

from medseg.geometry import connected_lesions
from medseg.metrics import case_metrics, detection_by_size, froc, lesion_rows, lesion_scores


def pieces(mask):
    """Voxel sets of the connected pieces, by SciPy."""
    numbered, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return [frozenset(map(tuple, np.argwhere(numbered == number))) for number in range(1, count + 1)]


def lesion_sets(mask):
    """Number in the reports -> voxels."""
    numbers = connected_lesions(mask)
    return {number: frozenset(map(tuple, np.argwhere(numbers == number))) for number in range(1, numbers.max() + 1)}


def matched_by_hand(reference, pred, least):
    """One to one, always the best that is left."""
    pairs, left = {}, {(r, p) for r in reference for p in pred}
    while left:
        iou = {pair: len(reference[pair[0]] & pred[pair[1]]) / len(reference[pair[0]] | pred[pair[1]]) for pair in left}
        best = min(left, key=lambda pair: (-iou[pair], pair))
        if iou[best] < least:
            break
        pairs[best] = iou[best]
        left = {pair for pair in left if pair[0] != best[0] and pair[1] != best[1]}
    return pairs


@pytest.mark.parametrize("least", [0.1, 0.5, 1.0])
def test_lesions_equal_voxel_sets_matched_by_hand(least):
    for pair in PAIRS:
        masks = pair.reference == 2, pair.pred == 2
        reference, pred = map(lesion_sets, masks)
        assert {*reference.values()} == {*pieces(masks[0])}, pair.name
        rows = lesion_rows(masks[1], masks[0], np.diag([*pair.spacing, 1]), match_iou=least)
        scores = lesion_scores(rows)
        matched = matched_by_hand(reference, pred, least)
        expected = {
            "lesion_count_reference": len(reference),
            "lesion_count_pred": len(pred),
            "lesion_matched": len(matched),
            "lesion_missed": len(reference) - len(matched),
            "lesion_false_alarms": len(pred) - len(matched),
            "lesion_merged": sum(sum(bool(p & r) for r in reference.values()) > 1 for p in pred.values()),
            "lesion_split": sum(sum(bool(p & r) for p in pred.values()) > 1 for r in reference.values()),
        }
        assert {name: scores[name] for name in expected} == expected, pair.name
        found = {
            (row["lesion"], row["partner"]): row["iou"] for row in rows if row["of"] == "reference" and row["partner"]
        }
        assert found == pytest.approx(matched), pair.name
        if reference:
            dice = [2 * iou / (1 + iou) for iou in matched.values()]
            touched = sum(any(p & r for p in pred.values()) for r in reference.values())
            assert scores["lesion_recall"] == len(matched) / len(reference)
            assert scores["lesion_f1"] == pytest.approx(2 * len(matched) / (len(reference) + len(pred)))
            assert scores["lesion_recall_any_overlap"] == touched / len(reference)
            everything = len(reference) + len(pred) - len(matched)
            assert scores["lesion_dice"] == pytest.approx(sum(dice) / everything)


def test_panoptic_quality_equals_monais():
    for pair in PAIRS:
        numbered = [
            ndimage.label(label == 2, structure=np.ones((3,) * label.ndim))[0] for label in (pair.pred, pair.reference)
        ]
        if numbered[1].max() == 0:
            continue
        names = {"pq": "panoptic_quality", "sq": "segmentation_quality", "rq": "recognition_quality"}
        scores = lesion_scores(lesion_rows(pair.pred == 2, pair.reference == 2, np.diag([*pair.spacing, 1])))
        for short, name in names.items():
            theirs = compute_panoptic_quality(*map(torch.tensor, numbered), metric_name=short, match_iou_threshold=0.5)
            assert (scores[name] or 0) == pytest.approx(float(theirs), abs=1e-5), (pair.name, name)


def row_of(*intervals, length=40):
    """A 2D map of one row of voxels between empty ones, with lesions at the given places."""
    label = np.zeros((3, length), np.uint8)
    for start, stop in intervals:
        label[1, start:stop] = 1
    return label


def rows_for(pred, reference, **settings):
    return lesion_rows(row_of(*pred), row_of(*reference), np.eye(3), **settings)


def test_a_prediction_that_floods_two_lesions_finds_one_and_is_named_merged():
    rows = rows_for([(2, 20)], [(2, 10), (12, 20)])
    scores = lesion_scores(rows)
    assert (scores["lesion_recall"], scores["lesion_recall_any_overlap"], scores["lesion_merged"]) == (0.5, 1.0, 1)
    assert [(row["of"], row["status"], row["merged"], row["overlaps"]) for row in rows] == [
        ("reference", "matched", True, [1]),
        ("reference", "missed", True, [1]),
        ("pred", "matched", True, [1, 2]),
    ]


def test_a_lesion_in_two_pieces_is_matched_once_and_named_split():
    rows = rows_for([(2, 8), (10, 20)], [(2, 20)])
    scores = lesion_scores(rows)
    assert (scores["lesion_recall"], scores["lesion_precision"], scores["lesion_split"]) == (1.0, 0.5, 1)
    assert [row["split"] for row in rows] == [True, True, True]
    assert rows[0]["iou"] == pytest.approx(10 / 18)


def test_partners_are_chosen_by_the_largest_iou_first():
    # reference a = 0..10, b = 11..21; one prediction 6..21 overlaps both: b by 10 of 15, a by 4 of 21
    rows = rows_for([(6, 21)], [(0, 10), (11, 21)])
    assert [(row["status"], row["iou"]) for row in rows[:2]] == [("missed", 0.0), ("matched", pytest.approx(10 / 15))]


def test_sizes_places_and_errors_of_lesions_by_hand():
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[2:6, 3:5, 1:2] = 1
    pred = np.zeros_like(reference)
    pred[2:5, 3:5, 1:2] = 1
    affine = np.array([[0, -2, 0, 10], [3, 0, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1.0]])
    lesion, found = lesion_rows(pred, reference, affine)
    assert lesion["volume_ml"] == pytest.approx(8 * 30 / 1000)
    assert lesion["partner_volume_ml"] == pytest.approx(found["volume_ml"]) == pytest.approx(6 * 30 / 1000)
    assert lesion["diameter_mm"] == pytest.approx((6 * 240 / np.pi) ** (1 / 3))
    assert (lesion["x_mm"], lesion["y_mm"], lesion["z_mm"]) == pytest.approx((10 - 2 * 3.5, 20 + 3 * 3.5, 35))
    assert (lesion["iou"], lesion["dice"]) == (pytest.approx(6 / 8), pytest.approx(12 / 14))


def test_detection_goes_by_size_smallest_bin_first():
    rows = rows_for([(0, 3), (30, 36)], [(0, 4), (6, 8), (10, 28)], size_bins_mm=(2, 4))
    # diameters of the circles of 2, 4 and 18 voxels: 1.6, 2.3 and 4.8; of the false alarm, 6: 2.8
    table = detection_by_size(rows)
    assert list(table) == ["<2 mm", "2-4 mm", ">=4 mm"]
    assert table["<2 mm"]["recall"] == 0
    assert table["2-4 mm"] == {
        "n": 1,
        "detected": 1,
        "recall": 1.0,
        "mean_dice": pytest.approx(6 / 7),
        "false_alarms": 1,
        "area_bias_mm2": -1.0,
        "area_mae_mm2": 1.0,
    }
    assert (table[">=4 mm"]["n"], table[">=4 mm"]["detected"]) == (1, 0)
    assert list(detection_by_size(rows_for([(0, 9)], [(0, 9)], size_bins_mm=()))) == ["all"]


def test_no_lesion_gives_none_by_one_rule_and_a_number_by_the_other():
    nothing, alarm = rows_for([], []), rows_for([(1, 3)], [])
    for rows, score in ((nothing, 1.0), (alarm, 0.0)):
        scores = lesion_scores(rows)
        for name in ("lesion_recall", "lesion_precision", "lesion_f1", "lesion_dice", "panoptic_quality"):
            assert scores[name] is None
            assert scores[f"{name}_all"] == score
    missed = lesion_scores(rows_for([], [(1, 3)]))
    assert (missed["lesion_recall"], missed["lesion_f1"], missed["lesion_dice"]) == (0, 0, 0)
    assert (missed["lesion_precision"], missed["lesion_precision_all"]) == (None, 0)


def test_froc_by_hand():
    # scores: 0.9 found, 0.8 false alarm, 0.6 found, 0.2 false alarm; a third lesion is missed; two cases
    scores = np.zeros((3, 40))
    for (start, stop), score in {(0, 4): 0.9, (6, 9): 0.8, (12, 16): 0.6, (30, 34): 0.2}.items():
        scores[1, start:stop] = score
    rows = rows_for([(0, 4), (6, 9), (12, 16), (30, 34)], [(0, 4), (12, 16), (20, 26)], scores=scores)
    curve = froc(rows, n_cases=2)
    assert curve["thresholds"] == pytest.approx([0.9, 0.8, 0.6, 0.2])
    assert curve["recall"] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert curve["false_alarms_per_case"] == [0, 0.5, 0.5, 1]
    assert list(curve["recall_at"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert list(curve["recall_at"].values()) == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert curve["froc_score"] == pytest.approx((2 * 1 / 3 + 5 * 2 / 3) / 7)


def test_froc_without_a_lesion_in_any_case_has_no_recall():
    curve = froc(rows_for([(1, 3)], [], scores=np.ones((3, 40))), n_cases=4)
    assert (curve["recall"], curve["false_alarms_per_case"], curve["froc_score"]) == ([None], [0.25], None)
    assert froc([], n_cases=1)["thresholds"] == []


def test_the_score_of_a_lesion_is_its_mean_probability():
    scores = np.full((3, 40), 0.5)
    scores[1, 2:4] = 0.1, 0.7
    (row,) = rows_for([(2, 4)], [], scores=scores)
    assert row["score"] == pytest.approx(0.4)


def test_a_case_numbers_lesions_as_the_reports_do():
    pair = next(pair for pair in PAIRS if pair.pred.ndim == 3 and (pair.pred == 2).sum() > 40)
    for order in "CF":
        pred, reference = (np.asarray(label, order=order) for label in (pair.pred, pair.reference))
        rows = case_metrics(pred, reference, pair.spacing, {"tumor": [2]}, lesion_region="tumor").lesion_rows
        numbers = connected_lesions(pair.pred == 2)
        for row in (row for row in rows if row["of"] == "pred"):
            center = np.argwhere(numbers == row["lesion"]).mean(axis=0) * pair.spacing
            assert (row["x_mm"], row["y_mm"], row["z_mm"]) == pytest.approx(tuple(center))


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ValueError, match="match_iou is 0; give a number above 0 and up to 1"):
        rows_for([], [], match_iou=0)
    with pytest.raises(ValueError, match=r"pred is \(2, 2\) and reference \(3, 2\); bring both to one grid"):
        lesion_rows(np.ones((2, 2)), np.ones((3, 2)), np.eye(3))
    with pytest.raises(ValueError, match="a predicted lesion has no score; give lesion_rows the probabilities"):
        froc(rows_for([(1, 3)], []), n_cases=1)
    with pytest.raises(ValueError, match="n_cases is 0; give the number of cases"):
        froc([], n_cases=0)
