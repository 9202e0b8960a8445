from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as scipy_label
from scipy.spatial.transform import Rotation

from medseg.geometry import (
    bounding_box,
    connected_lesions,
    connected_pieces,
    grid_difference,
    longest_3d_diameter_mm,
    longest_in_plane_diameter_mm,
    orientation_code,
    spacing_mm,
    voxel_volume_ml,
    voxels_of_pieces,
)

SHEARED = np.array([[-0.7, 0.1, 0.0, 33.0], [0.2, 0.8, 0.4, -10.0], [0.0, -0.3, 2.5, 7.0], [0, 0, 0, 1]])


def random_affine(index, *, shear):
    rng = np.random.default_rng(index)
    affine = np.eye(4)
    rotation = Rotation.random(random_state=index).as_matrix()
    affine[:3, :3] = rotation @ np.diag(rng.uniform(0.5, 5, 3) * rng.choice([-1, 1], 3))
    affine[:3, :3] @= np.eye(3) + shear * rng.uniform(-1, 1, (3, 3))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def longest_corner_distance(mask, affine, axial):
    """By every pair of voxel corners, three-dimensional points, slice by slice."""
    longest = 0.0
    for position in range(mask.shape[axial]):
        voxels = np.argwhere(mask)
        voxels = voxels[voxels[:, axial] == position]
        in_plane = [axis for axis in range(3) if axis != axial]
        corners = []
        for first in (-0.5, 0.5):
            for second in (-0.5, 0.5):
                step = np.zeros(3)
                step[in_plane] = first, second
                corners.append(voxels + step)
        points = nib.affines.apply_affine(affine, np.concatenate(corners))
        longest = max([longest, *(np.linalg.norm(a - b) for a, b in combinations(points, 2))])
    return longest


def test_spacing_is_that_of_nibabel():
    assert spacing_mm(SHEARED) == pytest.approx(nib.affines.voxel_sizes(SHEARED))


def test_volume_is_that_of_the_sheared_voxel_and_not_of_its_edges():
    first, second, third = SHEARED[:3, :3].T
    assert voxel_volume_ml(SHEARED) == pytest.approx(abs(np.dot(np.cross(first, second), third)) / 1000)
    assert voxel_volume_ml(SHEARED) < 0.99 * np.prod(spacing_mm(SHEARED)) / 1000


@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_orientation_is_that_of_nibabel(shear):
    affines = [random_affine(index, shear=shear) for index in range(200)]
    assert [orientation_code(affine) for affine in affines] == ["".join(nib.aff2axcodes(affine)) for affine in affines]


def test_equal_grids_do_not_differ():
    moved = SHEARED + 0.9e-3
    assert grid_difference((3, 4, 5), SHEARED, [3, 4, 5], moved) is None
    assert grid_difference((3, 4, 5), SHEARED, (3, 4, 5), moved, tolerance=1e-4) is not None


def test_difference_names_the_shape_first():
    assert grid_difference((3, 4, 5), SHEARED, (3, 4, 6), np.eye(4)) == "shape (3, 4, 5) against (3, 4, 6)"


def test_difference_names_what_the_affines_say():
    other = np.diag([2.0, 2.0, 3.0, 1.0])
    other[:3, 3] = 4, 5, 6
    assert grid_difference((3, 4, 5), np.diag([-2.0, -2.0, 3.0, 1.0]), (3, 4, 5), other) == (
        "LPS 2 x 2 x 3 mm at (0, 0, 0) against RAS 2 x 2 x 3 mm at (4, 5, 6) (affine entries up to 6 apart)"
    )


def test_lesions_are_those_of_scipy_numbered_by_size():
    mask = np.random.default_rng(0).random((13, 9, 11)) > 0.93
    expected, count = scipy_label(mask, structure=np.ones((3, 3, 3)))
    lesions = connected_lesions(mask)
    assert lesions.dtype == np.int32
    assert lesions.max() == count
    sizes = np.bincount(lesions.ravel())[1:]
    assert list(sizes) == sorted(np.bincount(expected.ravel())[1:], reverse=True)
    for number in range(1, count + 1):
        assert len(np.unique(expected[lesions == number])) == 1


def test_lesions_touching_at_a_corner_are_one():
    mask = np.zeros((4, 5, 6), dtype=np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = 1
    assert connected_lesions(mask).max() == 1
    assert connected_lesions(mask[:, :, 1] + mask[:, :, 2]).max() == 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_equally_large_lesions_are_numbered_by_their_first_voxel(order):
    mask = np.zeros((9, 9, 9), dtype=bool, order=order)
    first_voxels = [(0, 1, 1), (0, 8, 8), (1, 4, 1), (4, 1, 1), (8, 8, 0)]
    for voxel in first_voxels:
        mask[voxel] = True
    numbers = connected_lesions(mask)
    assert [numbers[voxel] for voxel in first_voxels] == [1, 2, 3, 4, 5]


def test_no_lesion_is_no_number():
    assert not connected_lesions(np.zeros((3, 4, 5), dtype=np.uint8)).any()


def test_lesions_of_many_small_maps_are_those_that_scipy_finds():
    random = np.random.default_rng(0)
    lines = [(1, 18), (18, 1), (1, 1, 15), (1, 17, 1), (17, 1, 1)]
    for index in range(600):
        shape = lines[index % 5] if index % 3 == 0 else tuple(random.integers(1, 20, 2 + index % 2))
        mask = random.random(shape) < random.uniform(0.05, 0.8)
        numbers, (expected, count) = connected_lesions(mask), scipy_label(mask, np.ones((3,) * mask.ndim))
        np.testing.assert_array_equal(numbers > 0, mask)
        assert numbers.max() == count
        assert len(set(zip(numbers[mask], expected[mask], strict=True))) == count


def test_bounding_box_is_tight():
    mask = np.zeros((7, 8, 9), dtype=np.uint8)
    mask[2, 3:6, 4] = 1
    assert bounding_box(mask) == (slice(2, 3), slice(3, 6), slice(4, 5))
    assert bounding_box(np.zeros((2, 3))) is None


def test_diameter_of_one_voxel_is_its_in_plane_diagonal():
    mask = np.zeros((5, 6, 7), dtype=np.uint8)
    mask[2, 3, 4] = 1
    assert longest_in_plane_diameter_mm(mask, np.diag([3.0, 4.0, 10.0, 1.0])) == pytest.approx(5.0)


def test_diameter_is_measured_across_the_superior_axis_wherever_it_is_stored():
    mask = np.zeros((5, 6, 7), dtype=np.uint8)
    mask[0:4, 2, 3] = 1  # stored axis 0 is superior here: four slices of one voxel
    affine = np.array([[0, 3.0, 0, 0], [0, 0, 4.0, 0], [9.0, 0, 0, 0], [0, 0, 0, 1]])
    assert longest_in_plane_diameter_mm(mask, affine) == pytest.approx(5.0)


@pytest.mark.parametrize("affine", [np.diag([-0.7, 0.9, 2.5, 1.0]), SHEARED], ids=["straight", "sheared"])
def test_diameter_is_the_longest_of_all_corner_pairs(affine):
    mask = np.random.default_rng(1).random((6, 7, 4)) > 0.8
    assert longest_in_plane_diameter_mm(mask, affine) == pytest.approx(longest_corner_distance(mask, affine, 2))


def test_diameter_of_nothing_is_zero():
    assert longest_in_plane_diameter_mm(np.zeros((3, 4, 5)), SHEARED) == 0.0


@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_are_counted_as_scipy_counts_them(order):
    random = np.random.default_rng(0)
    for shape in [(30, 20, 25), (1, 18, 1), (90, 90, 90)]:
        mask = np.asarray(random.random(shape) > 0.9, order=order)
        pieces, count = connected_pieces(mask)
        expected, number = scipy_label(mask, np.ones((3, 3, 3)))
        assert count == number
        np.testing.assert_array_equal(pieces > 0, mask)
        sizes = voxels_of_pieces(pieces, count)
        assert sizes[:40].tolist() == [np.count_nonzero(pieces == piece) for piece in range(1, min(count, 40) + 1)]
        assert sorted(sizes) == sorted(np.bincount(expected.ravel())[1:])


def test_diameters_of_large_bodies_are_those_of_their_far_ends():
    mask = np.zeros((60, 50, 40), bool)
    mask[5:55, 20:30, 10:30] = True
    mask[30, 3:47, 20] = True
    affine = np.diag([0.5, 0.9, 2.0, 1.0])
    assert longest_3d_diameter_mm(mask, affine) == pytest.approx(np.linalg.norm([25, 9, 40]))
    assert longest_in_plane_diameter_mm(mask, affine) == pytest.approx(44 * 0.9, abs=0.01)
