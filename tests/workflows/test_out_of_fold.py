"""Masks of folds and of their ensemble, when the models behind them have become others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_bundle import make_bundle, write_scan

from medseg.bundle import Bundle
from medseg.data import Cases, Sample
from medseg.inference import predict_folder
from medseg.writing import write_nifti
from workflows.cross_validation import _compare
from workflows.out_of_fold import Judge, Judged, predict_fold

CASE_IDS = ("a", "b")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two labeled cases."""
    label = np.zeros((21, 18, 13), np.uint8)
    label[5:15, 4:12, 3:9] = 1
    found: list[Any] = []
    for number, case_id in enumerate(CASE_IDS):
        image, reference = tmp_path / f"{case_id}.nii.gz", tmp_path / f"{case_id}_label.nii.gz"
        write_scan(image, seed=number)
        write_nifti(label, np.diag([-1.5, 1.5, 4.0, 1.0]), reference)
        found.append({"case_id": case_id, "image": str(image), "label": str(reference)})
    return found


@pytest.fixture
def models(tmp_path: Path) -> list[Bundle]:
    """Two models of one name and version, with other weights."""
    return [make_bundle(tmp_path / f"model_{seed}", seed=seed) for seed in range(2)]


def judged_by(model: Bundle, samples: list[Sample], parent: Path) -> Judged:
    return predict_fold(0, model.root, samples, parent=parent, judge=Judge(), device="cpu")


def masks_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_seg.nii.gz")}


def test_a_fold_that_was_trained_anew_is_segmented_anew(
    samples: list[Sample], models: list[Bundle], tmp_path: Path
) -> None:
    parent = tmp_path / "all"
    judged_by(models[0], samples, parent)
    predict_folder(samples, tmp_path / "own", models[1])
    assert judged_by(models[1], samples, parent).failed == []
    assert masks_in(parent / "out_of_fold") == masks_in(tmp_path / "own")

    before = {path: path.stat().st_mtime_ns for path in parent.rglob("*") if path.is_file()}
    judged_by(models[1], samples, parent)
    assert before == {path: path.stat().st_mtime_ns for path in parent.rglob("*") if path.is_file()}


def test_masks_that_a_killed_run_of_another_model_left_are_made_anew(
    samples: list[Sample], models: list[Bundle], tmp_path: Path
) -> None:
    parent = tmp_path / "all"
    predict_folder(samples, parent / "folds" / "fold_0" / "predictions", models[0])
    predict_folder(samples, tmp_path / "own", models[1])
    judged_by(models[1], samples, parent)
    assert masks_in(parent / "out_of_fold") == masks_in(tmp_path / "own")


def test_a_case_that_the_new_model_fails_on_keeps_no_mask_of_the_old_one(
    samples: list[Sample], models: list[Bundle], tmp_path: Path
) -> None:
    parent = tmp_path / "all"
    judged_by(models[0], samples, parent)
    (tmp_path / "b.nii.gz").write_bytes(b"no scan")
    assert judged_by(models[1], samples, parent).failed == ["b"]
    assert masks_in(parent / "out_of_fold").keys() == {"a_seg.nii.gz"}


def test_an_ensemble_of_more_folds_replaces_the_masks_of_the_one_before(
    samples: list[Sample], models: list[Bundle], tmp_path: Path
) -> None:
    parent = tmp_path / "all"
    parent.mkdir()
    experiment: Any = SimpleNamespace(
        folder=parent,
        cases=Cases(training=[], validation=[], test=samples, layout=""),
        log_metrics=lambda *_, **__: None,
        log_cases=lambda *_: None,
    )
    for model in models:
        known = _compare(experiment, {"ensemble": model, "fold_0": model}, Judge(), "cpu")
    predict_folder(samples, tmp_path / "own", models[1])
    assert masks_in(parent / "held_out") == masks_in(tmp_path / "own")
    assert known["dice"]["ensemble"] == known["dice"]["fold_0"]
