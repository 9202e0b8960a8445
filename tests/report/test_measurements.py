import csv
import itertools
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from medseg.geometry import connected_lesions, longest_3d_diameter_mm, voxel_volume_ml
from medseg.regions import LabelFacts, Lesions
from medseg.report import measure, write_csv

REGIONS = {"liver": [1, 2], "tumor": [2]}
AFFINE = np.array([[-1.5, 0, 0, 40.0], [0, -2.0, 0, 30.0], [0, 0, 3.0, -20.0], [0, 0, 0, 1]])  # LPS, 9 mm3
SHEARED = np.array([[1.5, 0.4, 0, 3.0], [0, 2.0, 0.3, 1.0], [0.1, 0, 3.0, -9.0], [0, 0, 0, 1]])


@pytest.fixture
def label():
    voxels = np.zeros((20, 21, 13), np.uint8)
    voxels[2:15, 3:16, 2:11] = 1
    voxels[4:7, 5:9, 3:5] = 2
    voxels[11, 11, 8] = 2
    return voxels


def longest_by_brute_force(mask, affine):
    """Largest distance between voxel corners that share an axial slice, in mm."""
    longest = 0.0
    for number in np.flatnonzero(mask.any(axis=(0, 1))):
        corners = [(x + i, y + j) for x, y in np.argwhere(mask[..., number]) for i in (-0.5, 0.5) for j in (-0.5, 0.5)]
        places = nib.affines.apply_affine(affine, [(*corner, number) for corner in corners])
        longest = max(longest, cdist(places, places).max())
    return longest


def test_volumes_speak_of_regions(label):
    row, _ = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    assert row["liver_ml"] == pytest.approx((label > 0).sum() * 1.5 * 2 * 3 / 1000)
    assert row["tumor_ml"] == pytest.approx(25 * 0.009)  # 3 x 4 x 2 voxels and one


def test_volume_of_a_sheared_grid_is_its_determinant(label):
    row, _ = measure(label, SHEARED, regions=REGIONS)
    # 1.5 * (2 * 3 - 0.3 * 0) - 0.4 * (0 * 3 - 0.3 * 0.1) = 9.012 mm3
    assert row["liver_ml"] == pytest.approx((label > 0).sum() * 9.012 / 1000)


def test_lesions_are_told_apart_largest_first(label):
    row, lesions = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    assert row["lesion_count"] == 2
    assert [lesion["lesion"] for lesion in lesions] == [1, 2]
    assert [lesion["volume_ml"] for lesion in lesions] == pytest.approx([0.216, 0.009])


def test_centroid_is_in_ras_millimeters(label):
    _, lesions = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    expected = nib.affines.apply_affine(AFFINE, [(5.0, 6.5, 3.5), (11.0, 11.0, 8.0)])
    found = [[lesion["x_mm"], lesion["y_mm"], lesion["z_mm"]] for lesion in lesions]
    np.testing.assert_allclose(found, expected)


def test_diameter_is_the_longest_within_an_axial_slice(label):
    row, lesions = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    first = np.zeros_like(label)
    first[4:7, 5:9, 3:5] = 1
    assert lesions[0]["longest_in_plane_diameter_mm"] == pytest.approx(longest_by_brute_force(first, AFFINE))
    assert row["longest_diameter_mm"] == lesions[0]["longest_in_plane_diameter_mm"]


def test_longest_diameter_need_not_be_the_largest_lesions(label):
    label[1:18, 1, 12] = 2  # a thin line of 17 voxels: 0.153 mL, yet 25.6 mm
    row, lesions = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    assert row["longest_diameter_mm"] == pytest.approx(np.hypot(17 * 1.5, 2))
    assert row["longest_diameter_mm"] == lesions[1]["longest_in_plane_diameter_mm"]


def test_case_without_a_lesion_has_none_of_length_zero(label):
    row, lesions = measure(np.minimum(label, 1), AFFINE, regions=REGIONS, lesion_region="tumor")
    assert (row["tumor_ml"], row["lesion_count"], row["longest_diameter_mm"], lesions) == (0.0, 0, 0.0, [])


def test_lesions_are_not_sought_without_a_lesion_region(label):
    row, lesions = measure(label, AFFINE, regions={"liver": [1], "tumor": [2]})
    assert (row["lesion_count"], row["longest_diameter_mm"], lesions) == (None, None, [])


def test_table_reads_back(tmp_path):
    rows = [
        {"case_id": "a, b", "dice": np.float64(0.123456), "count": 2, "note": None},
        {"case_id": "ç", "dice": float("nan")},
    ]
    write_csv(tmp_path / "deep" / "table.csv", rows, ["case_id", "dice", "count", "note"])
    with (tmp_path / "deep" / "table.csv").open(encoding="utf-8", newline="") as stream:
        read = list(csv.reader(stream))
    assert read == [["case_id", "dice", "count", "note"], ["a, b", "0.1235", "2", ""], ["ç", "", "", ""]]


def test_failed_table_leaves_the_old_one(tmp_path):
    table = tmp_path / "table.csv"
    write_csv(table, [{"case_id": "a"}], ["case_id"])
    before = table.read_bytes()
    with pytest.raises(ValueError, match="dice"):
        write_csv(table, [{"case_id": "b"}, {"case_id": "c", "dice": 1.0}], ["case_id"])
    assert table.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_measuring_loads_no_matplotlib():
    code = "import sys, medseg.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_3d_diameter_is_the_longest_between_any_two_corners():
    rng = np.random.default_rng(1)
    sheared = np.eye(4)
    sheared[:3, :3] = [[0.8, 0.1, 0.0], [0.0, 0.9, 0.4], [0.2, 0.0, 2.5]]
    for _ in range(10):
        mask = np.zeros((9, 8, 7), bool)
        mask[2:7, 1:6, 2:5] = rng.random((5, 5, 3)) > 0.8
        mask[4, 4, 3] = True
        corners = (np.argwhere(mask)[:, None] + np.array(list(itertools.product((-0.5, 0.5), repeat=3)))).reshape(-1, 3)
        places = corners @ sheared[:3, :3].T
        assert longest_3d_diameter_mm(mask, sheared) == pytest.approx(cdist(places, places).max())
    assert longest_3d_diameter_mm(np.zeros((3, 3, 3)), np.eye(4)) == 0.0


def test_the_organ_is_measured_with_and_without_its_lesions(label):
    row, _ = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    assert row["liver_without_tumor_ml"] == pytest.approx(np.count_nonzero(label == 1) * voxel_volume_ml(AFFINE))
    separate, _ = measure(label, AFFINE, regions={"tumor": [2]}, lesion_region="tumor")
    assert not [name for name in separate if "without" in name]


def test_means_are_over_the_lesions_own_voxels(label):
    hu = np.random.default_rng(0).normal(60, 20, label.shape).astype(np.float32)
    _, lesions = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor", hu=hu)
    numbers = connected_lesions(label == 2)
    for lesion in lesions:
        mean = hu[numbers == lesion["lesion"]].astype(np.float64).mean()
        assert lesion["mean_hu"] == pytest.approx(mean)
    _, unknown = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    assert {lesion["mean_hu"] for lesion in unknown} == {None}


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_lesions_are_located_in_their_organ_in_simple_terms(signs):
    label = np.ones((30, 30, 30), np.uint8)
    label[26, 14, 2] = 2
    mirrored = label[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.diag([*signs, 1.0])
    affine[:3, 3] = [0 if sign > 0 else 29 for sign in signs]
    _, (lesion,) = measure(mirrored, affine, regions=REGIONS, lesion_region="tumor")
    assert lesion["location"] == "right, middle, lower third"


def test_what_lies_on_another_grid_is_refused(label):
    other = np.zeros((*label.shape[:2], label.shape[2] + 1))
    with pytest.raises(ValueError, match="give both on one grid"):
        measure(label, AFFINE, regions=REGIONS, lesion_region="tumor", hu=other)


def test_facts_and_lesions_that_are_known_give_the_same_numbers(label):
    hu = np.random.default_rng(0).integers(-50, 150, label.shape).astype(np.int16)
    facts = LabelFacts.of(label)
    known = measure(
        facts, AFFINE, regions=REGIONS, lesion_region="tumor", found=Lesions.of(facts, REGIONS["tumor"]), hu=hu
    )
    for order in "CF":
        stored = np.asarray(label, order=order)
        assert measure(stored, AFFINE, regions=REGIONS, lesion_region="tumor", hu=hu) == known
