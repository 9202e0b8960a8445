import shutil

import nibabel as nib
import numpy as np
import pytest

from medseg.data import count_labels, fingerprint, region_volumes
from medseg.errors import DataError

AFFINE = np.diag([-0.75, 1.5, 2.5, 1.0])
VALUES = np.random.default_rng(0).integers(0, 3, (2, 5, 7, 4))


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return str(path)


@pytest.fixture
def samples(tmp_path):
    return [
        {
            "image": save(tmp_path / f"image{number}.nii", VALUES[number].astype(np.int16)),
            "label": save(tmp_path / f"label{number}.nii", VALUES[number].astype(np.uint8)),
            "case_id": f"case{number}",
        }
        for number in range(2)
    ]


def test_fingerprint_counts_and_has_no_path(samples, tmp_path):
    found = fingerprint([*samples, {"image": samples[0]["image"], "case_id": "test"}])
    assert {name: found[name] for name in ("cases", "labels", "files")} == {"cases": 3, "labels": 2, "files": 5}
    assert len(found["sha256"]) == 64
    assert tmp_path.name not in str(found)


def test_volumes_of_regions_are_those_of_counted_voxels(samples):
    rows = region_volumes(
        [*samples, {"image": samples[0]["image"], "case_id": "test"}], {"liver": [1, 2], "tumor": [2]}
    )
    assert [row["case_id"] for row in rows] == ["case0", "case1"]
    for row, values in zip(rows, VALUES, strict=True):
        voxel_ml = 0.75 * 1.5 * 2.5 / 1000
        assert row["liver_ml"] == pytest.approx(np.count_nonzero(values) * voxel_ml, abs=6e-4)
        assert row["tumor_ml"] == pytest.approx(np.count_nonzero(values == 2) * voxel_ml, abs=6e-4)


def test_region_that_was_not_annotated_has_no_volume(samples):
    [row] = region_volumes([samples[0] | {"labeled": ["tumor"]}], {"liver": [1, 2], "tumor": [2]})
    assert set(row) == {"case_id", "tumor_ml"}


def test_fingerprint_is_that_of_a_copy_in_another_place_and_order(samples, tmp_path):
    copies = []
    for number, sample in enumerate(samples):
        copy = {"case_id": sample["case_id"]}
        for part in ("image", "label"):
            copy[part] = str(shutil.copy(sample[part], tmp_path / f"other-{part}-{9 - number}.nii"))
        copies.insert(0, copy)
    assert fingerprint(copies) == fingerprint(samples)


@pytest.mark.parametrize("change", ["voxel", "case id", "parts swapped", "case gone"])
def test_fingerprint_shows_a_change(samples, change):
    before = fingerprint(samples)
    if change == "voxel":
        voxels = VALUES[1].astype(np.uint8)
        voxels[0, 0, 0] = 3 - voxels[0, 0, 0]
        nib.save(nib.Nifti1Image(voxels, AFFINE), samples[1]["label"])
    elif change == "case id":
        samples[0]["case_id"], samples[1]["case_id"] = samples[1]["case_id"], samples[0]["case_id"]
    elif change == "parts swapped":
        samples[0]["image"], samples[0]["label"] = samples[0]["label"], samples[0]["image"]
    else:
        samples.pop()
    assert fingerprint(samples)["sha256"] != before["sha256"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_labels_are_counted_by_value(samples, tmp_path, dtype):
    samples.append({"image": samples[0]["image"], "case_id": "without label"})
    samples[1]["label"] = save(tmp_path / "typed.nii", VALUES[1].astype(dtype))
    assert count_labels(samples, 4) == [*(int((value == VALUES).sum()) for value in range(3)), 0]


@pytest.mark.parametrize("value", [7, 300, -1])
def test_value_outside_the_recipe_is_refused_unless_ignored(samples, tmp_path, value):
    voxels = VALUES[1].astype(np.int16)
    voxels[0, 0, :2] = value
    samples[1]["label"] = save(tmp_path / "odd.nii", voxels)
    message = rf"case 'case1': label value {value} in 2 voxels \(odd.nii\), but the recipe has 0 to 2; correct one"
    with pytest.raises(DataError, match=message):
        count_labels(samples, 3)
    assert sum(count_labels(samples, 3, ignore_label=value)) == VALUES.size - 2


def test_fingerprint_shows_which_regions_were_annotated(samples):
    whole = fingerprint(samples)
    partial = fingerprint([samples[0] | {"labeled": ["tumor", "liver"]}, samples[1]])
    assert partial["sha256"] != whole["sha256"]
    assert partial["files"] == whole["files"]
    assert partial == fingerprint([samples[1], samples[0] | {"labeled": ["liver", "tumor"]}])
    assert partial != fingerprint([samples[0] | {"labeled": ["tumor"]}, samples[1]])


def test_a_case_that_is_annotated_in_part_counts_with_the_values_in_its_file(samples):
    expected = [int((value == VALUES).sum()) for value in range(3)]
    assert count_labels([samples[0] | {"labeled": ["tumor"]}, samples[1]], 3) == expected
