"""Training reads with the checks of prediction: a CT recipe takes no scan that is not in HU."""

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.preprocessing import Range, ScanToGrid, Window, ZScore
from medseg.transforms import ReadCased, whole_cases
from medseg.transforms.reading import expects_hu
from medseg.writing import write_nifti

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


@pytest.fixture
def shifted(tmp_path):
    """Air and soft tissue of a CT, stored as HU + 1024."""
    voxels = np.full((12, 10, 8), 24, dtype=np.int16)
    voxels[3:9, 3:8] = 1074
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(voxels, AFFINE, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("intensity", "ct"), [(Window(-100, 200), True), (ZScore(), False), (Range(0, 1), False)])
def test_a_window_of_hu_expects_hu(intensity, ct):
    assert expects_hu(ScanToGrid(spacing_mm=(1, 1, 1), intensity=intensity)) is ct


def test_scan_that_is_not_in_hu_is_refused_by_a_ct_recipe_alone(shifted):
    sample = {"image": str(shifted / "a.nii.gz"), "case_id": "a"}
    ct = ScanToGrid(spacing_mm=(2, 2, 2), intensity=Window(-100, 200))
    with pytest.raises(RuntimeError) as refused:  # MONAI's wrapping
        whole_cases(ct, ["ct"], {"background": 0}, ignore_label=255)(sample)
    assert "case 'a': a.nii.gz: values look like HU + 1024" in str(refused.value.__cause__)
    mr = ScanToGrid(spacing_mm=(2, 2, 2), intensity=ZScore())
    assert "image" in whole_cases(mr, ["mr"], {"background": 0}, ignore_label=255)(sample)


def test_each_channel_is_checked_and_named(shifted):
    good = np.full((12, 10, 8), -1000, dtype=np.int16)
    good[3:9, 3:8] = 50
    write_nifti(good, AFFINE, shifted / "a.nii.gz")
    paths = [str(shifted / name) for name in ("a.nii.gz", "b.nii.gz")]
    with pytest.raises(DataError, match=r"case 'a': b.nii.gz: values look like HU \+ 1024"):
        ReadCased(["portal", "arterial"], {"background": 0}, 255, hu=True)({"image": paths, "case_id": "a"})
    write_nifti(np.stack([good, good + 1024], axis=-1), AFFINE, shifted / "both.nii.gz")
    with pytest.raises(DataError, match=r"both.nii.gz: values look like HU \+ 1024"):
        ReadCased(["portal", "arterial"], {"background": 0}, 255, hu=True)(
            {"image": str(shifted / "both.nii.gz"), "case_id": "a"}
        )
