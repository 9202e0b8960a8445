import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medseg.data import Cases
from workflows.evaluation import CaseTable, labeled_cases, one_case

REGIONS = {"liver": [1, 2], "tumor": [2]}
GRID = SimpleNamespace(scan_affine=np.diag([2.0, 2.0, 5.0, 1.0]))  # 0.02 mL a voxel


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


def test_ignored_voxels_are_not_judged() -> None:
    table = CaseTable(REGIONS, ignore_label=255)
    table.update(("a", labels(1, 1, 1, 0), labels(1, 255, 255, 0), GRID))
    assert table.means()["liver_dice"] == 1.0


def test_worst_and_best_case_are_remembered_with_their_predictions() -> None:
    table = CaseTable({"liver": [1]})
    for case_id, pred in (("good", labels(1, 1, 0)), ("bad", labels(0, 0, 1)), ("fair", labels(1, 0, 0))):
        table.update((case_id, pred, labels(1, 1, 0), GRID))
    assert {which: extreme[1] for which, extreme in table.extremes.items()} == {"worst": "bad", "best": "good"}
    assert table.extremes["worst"][2].tolist() == [[[0]], [[0]], [[1]]]


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
