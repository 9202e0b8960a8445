import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medseg.data import Cases
from workflows.evaluation import CaseTable, PackedLabels, labeled_cases, one_case, training_curves

REGIONS = {"liver": [1, 2], "tumor": [2]}
GRID = SimpleNamespace(scan_affine=np.diag([2.0, 2.0, 5.0, 1.0]), unit="mm")  # 0.02 mL a voxel


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, -1, 1, 1)


def test_the_key_metric_is_the_mean_over_regions_of_the_mean_over_cases_that_have_them() -> None:
    table = CaseTable(REGIONS)
    table.update(("a", labels(0, 1, 1, 2), labels(0, 1, 2, 2), GRID))  # liver 1, tumor 2 * 1 / (1 + 2)
    table.update(("b", labels(1, 0, 0, 2), labels(1, 1, 0, 0), GRID))  # liver 2 * 1 / (2 + 2), no tumor to find
    assert table.means()["liver_dice"] == pytest.approx((1 + 0.5) / 2)
    assert table.means()["tumor_dice"] == pytest.approx(2 / 3)
    assert table.compute() == pytest.approx((0.75 + 2 / 3) / 2)


def test_a_row_holds_dice_iou_and_volumes_of_every_region() -> None:
    table = CaseTable(REGIONS)
    table.update(("a", labels(0, 1, 1, 2), labels(0, 1, 2, 2), GRID))
    (row,) = table.rows
    assert row["case_id"] == "a"
    assert row["tumor_iou"] == pytest.approx(1 / 2)
    assert row["liver_reference_ml"] == pytest.approx(0.06)
    assert row["tumor_pred_ml"] == pytest.approx(0.02)


def test_a_region_that_was_not_annotated_is_not_judged() -> None:
    table = CaseTable(REGIONS)
    table.update(("a", labels(0, 1, 1, 2), labels(0, 0, 2, 2), GRID, ["tumor"]))
    table.update(("b", labels(0, 1, 1, 2), labels(0, 1, 1, 1), GRID, ["liver"]))
    table.update(("c", labels(0, 0, 1, 2), labels(0, 1, 1, 2), GRID))
    assert table.rows[0]["tumor_dice"] == pytest.approx(2 / 3)
    assert {value for name, value in table.rows[0].items() if name.startswith("liver_")} == {None}
    assert {value for name, value in table.rows[1].items() if name.startswith("tumor_")} == {None}
    assert {tuple(row) for row in table.rows} == {tuple(table.rows[2])}
    means = table.means()
    assert means["tumor_dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert means["liver_dice"] == pytest.approx((1 + 0.8) / 2)
    assert (means["liver_n"], means["tumor_n"]) == (2, 2)


def test_a_batch_says_which_regions_were_annotated() -> None:
    table = CaseTable(REGIONS)
    output = {"pred": labels(0, 1, 2), "label": labels(0, 0, 2)}
    for batch in ({"case_id": "a", "labeled": ["tumor"]}, {"case_id": "b"}):
        table.iteration_completed(SimpleNamespace(state=SimpleNamespace(batch=batch | {"grid": GRID}, output=output)))
    assert [row["liver_dice"] for row in table.rows] == [None, pytest.approx(2 / 3)]


def test_the_mean_counts_the_cases_that_have_the_region() -> None:
    table = CaseTable(REGIONS)
    table.update(("a", labels(1, 2), labels(1, 1), GRID))
    table.update(("b", labels(1, 2), labels(1, 2), GRID))
    assert (table.means()["liver_n"], table.means()["tumor_n"]) == (2, 1)


def test_ignored_voxels_are_not_judged() -> None:
    table = CaseTable(REGIONS, ignore_label=255)
    table.update(("a", labels(1, 1, 1, 0), labels(1, 255, 255, 0), GRID))
    assert table.means()["liver_dice"] == 1.0


def test_worst_median_and_best_case_are_shown_with_their_predictions() -> None:
    table = CaseTable({"liver": [1]})
    preds = {"good": labels(1, 1, 0), "bad": labels(0, 0, 1), "fair": labels(1, 0, 0)}
    for case_id, pred in preds.items():
        table.update((case_id, pred, labels(1, 1, 0), GRID))
    assert {which: case_id for which, (_, case_id, _) in table.examples().items()} == {
        "worst": "bad",
        "median": "fair",
        "best": "good",
    }
    for _, case_id, pred in table.examples().values():
        assert pred.tolist() == preds[case_id][0, 0].tolist()
    assert table.examples()["median"][0] == pytest.approx(2 / 3)


def test_median_of_an_even_number_of_cases_is_one_of_them() -> None:
    table = CaseTable({"liver": [1]})
    for number in range(4):
        table.update((str(number), labels(*[1] * number, 0, 0), labels(*[1] * number, 0, 1), GRID))
    assert [case_id for _, case_id, _ in table.examples().values()] == ["0", "1", "3"]


def test_a_table_without_cases_has_no_examples() -> None:
    assert CaseTable(REGIONS).examples() == {}


@pytest.mark.parametrize("values", [(0, 0, 0), (0, 3, 0), (7, 0, 1)])
def test_packed_labels_are_unpacked_as_they_were(values: tuple[int, ...]) -> None:
    whole = np.zeros((5, 7, 6), np.uint8)
    whole[2, 3:6, 4] = values
    packed = PackedLabels.pack(whole)
    assert np.array_equal(packed.unpack(), whole)
    assert len(packed.content) < 20


def test_packed_labels_of_a_whole_volume_take_little_memory() -> None:
    whole = np.zeros((64, 48, 40), np.uint8)
    whole[10:40, 9:30, 5:35] = 1
    assert len(PackedLabels.pack(whole).content) < whole.size / 100


def test_curves_are_of_figures_that_have_a_course() -> None:
    course = [(1, 1.0), (2, 0.5)]
    history = {
        "train_loss": course,
        "validation_liver_dice": course,
        "held_out_mean_dice": [(2, 1.0)],
        "system/a": course,
    }
    assert training_curves(history) == {"loss/train_loss": course, "dice/validation_liver_dice": course}


def test_a_reset_table_is_empty() -> None:
    table = CaseTable(REGIONS)
    table.update(("a", labels(1, 2), labels(1, 2), GRID))
    table.reset()
    assert table.rows == []
    assert table.compute() == 0.0


def test_one_case_gets_a_batch_axis() -> None:
    batch = one_case([{"image": torch.zeros(1, 4, 5, 6), "case_id": "a"}])
    assert batch["image"].shape == (1, 1, 4, 5, 6)
    assert batch["case_id"] == "a"


def test_without_labeled_held_out_cases_the_validation_cases_are_judged(caplog: pytest.LogCaptureFixture) -> None:
    validation, unlabeled = {"case_id": "v", "label": "v.nii"}, {"case_id": "t"}
    cases = Cases(training=[], validation=[validation], test=[unlabeled], layout="MSD")
    with caplog.at_level(logging.INFO):
        assert labeled_cases(cases) == [validation]
    assert "judging the 1 validation cases instead" in caplog.text
    held_out = {"case_id": "h", "label": "h.nii"}
    assert labeled_cases(Cases([], [validation], [unlabeled, held_out], "MSD")) == [held_out]
