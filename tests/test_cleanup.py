import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from scipy.ndimage import label as number
from scipy.spatial.distance import cdist

import medseg.postprocessing
from medseg.cleanup import FillHoles, KeepInside, KeepLargest, RemoveSmall, RemoveSmallArea, changes
from medseg.data_half import build
from medseg.errors import ConfigError

FULL = np.ones((3, 3, 3))
AFFINE = np.diag([-0.8, 0.8, 2.5, 1.0])
VOXEL_ML = 0.8 * 0.8 * 2.5 / 1000


@pytest.fixture
def blobs() -> np.ndarray:
    """Ragged pieces of values 1 and 2, many with holes, off center in a larger field."""
    rng = np.random.default_rng(0)
    label = np.zeros((33, 29, 21), np.uint8)
    label[3:28, 5:26, 2:17] = (rng.random((25, 21, 15)) > 0.55) * rng.integers(1, 3, (25, 21, 15))
    label[8:20, 8:20, 5:12] = 1
    label[10:13, 10:13, 7:9] = 0
    return label


def test_the_largest_piece_is_the_one_scipy_counts_largest(blobs: np.ndarray) -> None:
    before = blobs.copy()
    pieces, _ = number(blobs > 0, FULL)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    assert np.array_equal(KeepLargest([1, 2])(blobs, AFFINE), np.where(pieces == largest, blobs, 0))
    assert np.array_equal(blobs, before)


def test_small_pieces_of_a_value_take_another(blobs: np.ndarray) -> None:
    pieces, _ = number(blobs == 2, FULL)
    small = (np.bincount(pieces.ravel()) < 4)[pieces] & (blobs == 2)
    assert small.any()
    expected = np.where(small, 1, blobs)
    assert np.array_equal(RemoveSmall(2, 4 * VOXEL_ML, becomes=1)(blobs, AFFINE), expected)
    assert np.array_equal(RemoveSmallArea(2, 4, becomes=1)(blobs, np.eye(4)), expected)


def test_holes_are_those_of_scipy_and_only_background_is_filled(blobs: np.ndarray) -> None:
    blobs[11, 11, 8] = 7  # another structure in the hole
    holes = binary_fill_holes(np.isin(blobs, (1, 2))) & (blobs == 0)
    assert holes.sum() >= 3 * 3 * 2 - 1
    filled = FillHoles([1, 2])(blobs, AFFINE)
    assert np.array_equal(filled, np.where(holes, 1, blobs))
    assert filled[11, 11, 8] == 7
    assert FillHoles([1, 2], becomes=2)(blobs, AFFINE)[10, 10, 7] == 2


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_by_slice_each_axial_slice_is_closed_wherever_the_axial_axis_is_stored(axes: tuple[int, ...]) -> None:
    label = np.zeros((9, 8, 5), np.uint8)
    label[1:8, 1:7] = 1
    label[3:5, 3:5] = 0  # a tunnel from below to above: no hole in 3D
    affine = AFFINE[:, [*axes, 3]]
    stored = np.ascontiguousarray(label.transpose(axes))
    assert np.array_equal(FillHoles([1])(stored, affine), stored)
    closed = np.zeros_like(label)
    closed[1:8, 1:7] = 1
    assert np.array_equal(FillHoles([1], by_slice=True)(stored, affine), closed.transpose(axes))


def test_holes_above_the_volume_stay() -> None:
    label = np.ones((15, 12, 9), np.uint8)
    label[2:4, 2:4, 2:4] = 0  # 8 voxels
    label[8, 8, 5] = 0
    limited = FillHoles([1], up_to_ml=7.5 * VOXEL_ML)(label, AFFINE)
    assert limited[8, 8, 5] == 1
    assert not limited[2:4, 2:4, 2:4].any()
    assert FillHoles([1], up_to_ml=8.5 * VOXEL_ML)(label, AFFINE).all()
    # in one slice the larger hole has 4 voxels
    assert FillHoles([1], up_to_ml=4.5 * VOXEL_ML, by_slice=True)(label, AFFINE).all()


def cut_by_brute_force(label: np.ndarray, margin_mm: float) -> np.ndarray:
    organ = np.argwhere(binary_fill_holes(label == 1)) * (0.8, 0.8, 2.5)
    tumor = np.argwhere(label == 2)
    outside = tumor[cdist(tumor * (0.8, 0.8, 2.5), organ).min(axis=1) > margin_mm]
    cut = label.copy()
    cut[tuple(outside.T)] = 0
    return cut


@pytest.mark.parametrize("margin_mm", [0, 1.7, 4.0, 30.0])
def test_a_tumor_is_cut_where_exact_distances_on_anisotropic_voxels_say(margin_mm: float) -> None:
    label = np.zeros((30, 24, 14), np.uint8)
    label[4:14, 5:18, 3:10] = 1
    label[9:28, 8:12, 4:13] = 2  # grows far out of the organ
    label[2:4, 20:22, 0:2] = 2
    kept = KeepInside(2, [1], margin_mm, whole_from=1.5)(label, AFFINE)
    assert np.array_equal(kept, cut_by_brute_force(label, margin_mm))


def test_a_piece_that_is_inside_by_half_stays_whole_and_one_outside_goes() -> None:
    label = np.zeros((40, 12, 10), np.uint8)
    label[5:20, 2:10, 2:8] = 1
    label[14:25, 4:7, 3:6] = 2  # 6 of 11 planes inside
    label[30:35, 4:7, 3:6] = 2
    kept = KeepInside(2, [1], 0.0)(label, AFFINE)  # the notch that the tumor makes is open, so no hole of the organ
    assert not kept[30:].any()
    assert not (kept[14:25] == 2).any()
    kept = KeepInside(2, [1], 2.6)(label, AFFINE)
    assert np.array_equal(kept[:30], label[:30])
    assert not kept[30:].any()


def test_a_large_tumor_that_the_organ_surrounds_is_not_hollowed() -> None:
    label = np.zeros((32, 32, 16), np.uint8)
    label[2:30, 2:30, 2:14] = 1
    label[4:28, 4:28, 4:12] = 2
    assert np.array_equal(KeepInside(2, [1], 0.0, whole_from=1.5)(label, AFFINE), label)


def test_without_the_organ_nothing_of_the_tumor_is_inside() -> None:
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:4, 2:4, 2:4] = 2
    assert np.array_equal(KeepInside(2, [1], 5.0, becomes=3)(label, AFFINE), np.where(label, 3, 0))


@pytest.mark.parametrize(
    "rule",
    [KeepLargest([1]), RemoveSmall(1, 9), RemoveSmallArea(1, 9), FillHoles([1], by_slice=True), KeepInside(1, [2], 3)],
    ids=lambda rule: type(rule).__name__,
)
def test_an_empty_label_stays_empty(rule: KeepLargest) -> None:
    assert not rule(np.zeros((4, 5, 6), np.uint8), AFFINE).any()


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (FillHoles, {"values": []}, "FillHoles: values is empty; name the label values of a region"),
        (FillHoles, {"values": [1], "up_to_ml": 0}, "up_to_ml is 0; give a volume in mL, or null"),
        (
            KeepInside,
            {"value": 2, "inside": [1, 2], "margin_mm": 5},
            r"inside is \[1, 2\] for value 2; give the organ's",
        ),
        (KeepInside, {"value": 2, "inside": [], "margin_mm": 5}, r"inside is \[\] for value 2"),
        (KeepInside, {"value": 2, "inside": [1], "margin_mm": -1}, "margin_mm is -1; give 0 or more mm"),
    ],
)
def test_rules_refuse_what_makes_no_sense(rule: type, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(**settings)


def test_what_the_rules_did_is_said_by_label() -> None:
    before = np.zeros((12, 9, 8), np.uint8)
    before[1:9, 1:8, 1:7] = 1
    before[2:4, 2:4, 2:4] = 2  # 8 voxels = 12.8 mm3
    before[6, 6, 5] = 2
    before[11, 8, 7] = 2
    after = before.copy()
    after[6, 6, 5] = 1
    after[11, 8, 7] = 0
    names = {"background": 0, "liver": 1, "tumor": 2}
    large = np.diag([40.0, 40.0, 50.0, 1.0])  # 80 mL a voxel
    assert changes(before, after, large, names) == (
        "liver: 80.0 mL added",
        "tumor: 2 pieces, 160.0 mL removed",
    )
    assert changes(before, before, large, names) == ()


def test_recipes_name_the_rules_by_their_old_and_new_paths() -> None:
    recipe = {
        "cleanup": [
            {"_target_": "medseg.postprocessing.KeepLargest", "values": [1, 2]},
            {"_target_": "medseg.cleanup.FillHoles", "values": [1], "up_to_ml": 2.0},
            {"_target_": "medseg.cleanup.KeepInside", "value": 2, "inside": [1], "margin_mm": 10.0},
        ]
    }
    largest, holes, inside = build(recipe, "cleanup")
    assert isinstance(largest, KeepLargest)
    assert medseg.postprocessing.KeepLargest is KeepLargest
    assert (holes.up_to_ml, inside.margin_mm) == (2.0, 10.0)
