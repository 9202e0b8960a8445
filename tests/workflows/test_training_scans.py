"""What a bundle learns about its training scans, and what that may cost."""

import logging

import numpy as np
import pytest

from medseg.writing import write_nifti
from workflows import training_scans
from workflows.training_scans import range_of

RECIPE = {
    "channels": ["ct"],
    "intensity": {"_target_": "medseg.preprocessing.Window", "low_hu": -100, "high_hu": 200},
    "scan_to_grid": {"_target_": "medseg.preprocessing.ScanToGrid", "spacing_mm": [1, 1, 1]},
}


@pytest.fixture
def samples(tmp_path):
    made = []
    for number in range(6):
        path = tmp_path / f"{number}.nii.gz"
        voxels = np.full((6, 5, 4), 100 * number, np.int16)
        write_nifti(voxels, np.diag([1.0 + number, 2, 3, 1]), path)
        made.append({"image": str(path), "case_id": str(number)})
    return made


def test_every_header_counts_and_the_voxels_of_a_few(samples, monkeypatch):
    monkeypatch.setattr(training_scans, "VOXELS_OF", 2)
    known = range_of(samples, RECIPE)["training_range"]
    assert (known["cases"], known["modality"]) == (6, "CT")
    assert known["spacing_mm"] == {"low": [1, 2, 3], "high": [6, 2, 3]}
    assert known["percentiles"]["ct"]["50"] == [0, 300]  # of the first and the fourth


def test_a_file_that_is_gone_costs_the_range_and_not_the_training(samples, tmp_path, caplog):
    (tmp_path / "3.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        assert range_of(samples, RECIPE) == {}
    assert "does not tell the range of its training scans: 3.nii.gz: no such file" in caplog.text


def test_images_in_pixels_and_no_cases_have_no_range(samples):
    pixels = {**RECIPE, "scan_to_grid": {"_target_": "medseg.preprocessing.ImageToGrid", "size": [8, 8]}}
    assert range_of(samples, pixels) == {}
    assert range_of([], RECIPE) == {}
