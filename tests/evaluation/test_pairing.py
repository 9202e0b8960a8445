"""Masks and references meet by case id."""

import re
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.evaluation.pairing import masks_in, pair
from medseg.writing import write_nifti


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        write_nifti(np.zeros((2, 2, 2), dtype=np.uint8), np.eye(4), folder / name)
    return folder


def test_the_ending_of_predicted_masks_is_no_part_of_the_id(tmp_path: Path) -> None:
    folder = touch(tmp_path, "b_seg.nii.gz", "deep/a_seg.nii.gz")
    assert set(masks_in(folder)) == {"b", "deep/a"}


def test_an_ending_that_only_some_masks_have_is_part_of_the_id(tmp_path: Path) -> None:
    folder = touch(tmp_path, "b_mask.nii.gz", "a.nii.gz")
    assert set(masks_in(folder)) == {"a", "b_mask"}


def test_the_references_of_lits_belong_to_its_volumes(tmp_path: Path) -> None:
    assert set(masks_in(touch(tmp_path, "segmentation-3.nii.gz"))) == {"volume-3"}


def test_hidden_files_are_no_masks(tmp_path: Path) -> None:
    assert set(masks_in(touch(tmp_path, "a.nii.gz", ".hidden/a.nii.gz", ".b.nii.gz"))) == {"a"}


@pytest.mark.parametrize("passed_on", [False, True])
def test_of_a_folder_of_predictions_only_the_masks_are_taken(tmp_path: Path, passed_on: bool) -> None:
    touch(tmp_path, "a_seg.nii.gz", "a_instances.nii.gz", "deep/b_seg.nii.gz", "deep/b_instances.nii.gz")
    if passed_on:  # as docs/privacy.md says: without the folder .medseg
        (tmp_path / "run.json").write_text("{}")
    else:
        (tmp_path / ".medseg").mkdir()
    (tmp_path / "a.seg.nrrd").write_bytes(b"the same again")
    assert {case_id: path.name for case_id, path in masks_in(tmp_path).items()} == {
        "a": "a_seg.nii.gz",
        "deep/b": "b_seg.nii.gz",
    }


def test_masks_of_another_program_stay_masks_beside_a_run_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    (tmp_path / "run.json").write_text("{}")
    assert set(masks_in(tmp_path)) == {"a", "b"}


def test_what_lacks_its_other_half_is_named() -> None:
    found = pair(["a", "b", "c"], ["d", "b", "c"])
    assert found.both == ("b", "c")
    assert found.without_reference == ("a",)
    assert found.without_mask == ("d",)


def test_two_masks_of_a_case_are_refused(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.nii.gz", "a.nii")
    with pytest.raises(DataError, match="case 'a': two masks"):
        masks_in(folder)


def test_folders_without_a_common_id_are_refused() -> None:
    with pytest.raises(DataError, match=re.escape("no case id is in both: masks are a, b, references c")):
        pair(["a", "b"], ["c"])


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no masks in it"):
        masks_in(tmp_path)
    with pytest.raises(DataError, match="no such folder of masks"):
        masks_in(tmp_path / "nowhere")
