from itertools import permutations, product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from scipy.ndimage import map_coordinates

from medseg.errors import DataError
from medseg.geometry import orientation_code, spacing_mm
from medseg.preprocessing import ScanToGrid, Window, ZScore, from_working_axes, interpolation_matrix, to_working_axes
from medseg.reading import Scan

SHAPE = (13, 9, 7)
ORIENTATIONS = [
    list(zip(axes, flips, strict=True)) for axes in permutations(range(3)) for flips in product((1, -1), repeat=3)
]


def identity(image: torch.Tensor) -> torch.Tensor:
    return image


def oblique_affine(spacing: tuple[float, float, float] = (0.9, 1.3, 3.1)) -> np.ndarray:
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (-50.0, 20.0, 110.0)
    return affine


def turned(voxels: np.ndarray, affine: np.ndarray, orientation: list[tuple[int, int]]) -> Scan:
    """The same volume stored with other axis order and directions, by indices alone."""
    axes, flips = zip(*orientation, strict=True)
    stored = voxels.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, (old, flip) in enumerate(orientation):
        to_old[old, new] = flip
        to_old[old, 3] = 0 if flip == 1 else voxels.shape[old] - 1
    return Scan(np.ascontiguousarray(stored), affine @ to_old)


def test_window_clips_and_scales_to_zero_one() -> None:
    image = torch.tensor([-1000.0, -150.0, 50.0, 250.0, 3000.0])
    assert Window(-150, 250)(image).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_window_refuses_swapped_limits() -> None:
    with pytest.raises(ValueError, match="low_hu < high_hu, got 250 and -150 HU"):
        Window(250, -150)


def test_z_score_has_mean_zero_and_deviation_one_and_survives_a_flat_image() -> None:
    scored = ZScore()(torch.rand(5, 6, 7) * 40 + 3)
    assert abs(float(scored.mean())) < 1e-5
    assert float(scored.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(ZScore()(torch.full((3, 3), 7.0)), torch.zeros(3, 3))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_stored_orientation_gives_the_same_working_grid(orientation: list[tuple[int, int]]) -> None:
    voxels = np.random.default_rng(0).integers(-200, 300, SHAPE).astype(np.int16)
    to_grid = ScanToGrid(spacing_mm=(1.5, 1.5, 2.0), intensity=identity)
    expected, _ = to_grid([Scan(voxels, oblique_affine())])
    scan = turned(voxels, oblique_affine(), orientation)
    image, grid = to_grid([scan])
    # the working grid starts at another corner where the stored one is flipped, so sizes agree and values nearly do
    assert image.shape == expected.shape
    assert orientation_code(grid.affine) == "RAS"
    assert spacing_mm(grid.affine) == pytest.approx((1.5, 1.5, 2.0))
    assert np.array_equal(from_working_axes(to_working_axes(scan.voxels, grid), grid), scan.voxels)
    assert torch.allclose(image, expected, atol=1e-3)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.0), (0.5, 2.3, 3.1), (4.0, 4.0, 4.0)])
def test_without_antialiasing_the_grid_is_monais(spacing: tuple[float, float, float]) -> None:
    affine = np.diag([-0.9, -1.3, 3.1, 1.0])
    voxels = np.random.default_rng(1).integers(-200, 300, SHAPE).astype(np.int16)
    image, grid = ScanToGrid(spacing_mm=spacing, intensity=identity, antialias=False)([Scan(voxels, affine)])
    monai_image = MetaTensor(torch.from_numpy(voxels.astype(np.float32))[None], affine=torch.from_numpy(affine))
    expected = Spacing(spacing, mode="bilinear")(Orientation("RAS", labels=None)(monai_image))
    assert image.shape == expected.shape
    assert np.allclose(grid.affine, expected.affine)
    assert torch.allclose(image, expected.as_tensor().float(), atol=2e-3)


def test_antialiasing_averages_what_a_larger_voxel_covers() -> None:
    noise = np.random.default_rng(2).normal(0, 100, (40, 40, 40)).astype(np.float32)
    scan = Scan(noise, np.eye(4))
    smooth, _ = ScanToGrid(spacing_mm=(3, 3, 3), intensity=identity)([scan])
    picked, _ = ScanToGrid(spacing_mm=(3, 3, 3), intensity=identity, antialias=False)([scan])
    assert smooth.std() < 0.3 * picked.std()


def test_interpolation_weights_sum_to_one_and_pick_neighbors() -> None:
    weights = interpolation_matrix(5, 9, 0.5)
    assert torch.allclose(weights.sum(dim=1), torch.ones(9))
    assert weights[3].tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]  # position 1.5


def test_labels_move_by_nearest_neighbor() -> None:
    voxels = np.random.default_rng(3).integers(0, 3, SHAPE).astype(np.uint8)
    to_grid = ScanToGrid(spacing_mm=(0.7, 1.1, 2.3), intensity=identity)
    grid = to_grid.grid(SHAPE, np.diag([0.9, 1.3, 3.1, 1.0]))
    position = np.meshgrid(*(np.arange(n) * s for n, s in zip(grid.shape, grid.scale, strict=True)), indexing="ij")
    expected = map_coordinates(voxels, position, order=0, mode="nearest")
    assert np.array_equal(to_grid.label(voxels, grid)[0].numpy(), expected)


def test_a_second_channel_lands_where_it_lies_in_the_world() -> None:
    def world_ramp(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        index = np.stack([*np.indices(shape).reshape(3, -1), np.ones(np.prod(shape))])
        return (np.array([1.0, 2.0, -3.0, 5.0]) @ (affine @ index)).reshape(shape).astype(np.float32)

    first = np.diag([1.0, 1.0, 2.0, 1.0])
    second = np.diag([-1.4, 0.8, 1.1, 1.0])
    second[:3, 3] = (16.0, -4.0, -3.0)
    scans = [Scan(world_ramp((10, 11, 6), first), first), Scan(world_ramp((20, 24, 20), second), second)]
    image, _ = ScanToGrid(spacing_mm=(1.3, 1.3, 1.9), intensity=identity, antialias=False)(scans)
    assert image.shape[0] == 2
    inside = (slice(None, -1),) * 3
    assert torch.allclose(image[0][inside], image[1][inside], atol=1e-2)


def test_a_second_channel_elsewhere_in_space_is_refused() -> None:
    far = np.eye(4)
    far[0, 3] = 4000
    scans = [Scan(np.zeros(SHAPE, np.int16), np.eye(4)), Scan(np.ones(SHAPE, np.int16), far)]
    with pytest.raises(DataError, match="does not overlap the first"):
        ScanToGrid(spacing_mm=(1, 1, 1), intensity=identity)(scans)


def test_the_scan_itself_stays_as_it_was() -> None:
    voxels = np.random.default_rng(4).integers(-200, 300, SHAPE).astype(np.int16)
    before = voxels.copy()
    ScanToGrid(spacing_mm=(0.9, 1.3, 3.1), intensity=Window(-100, 100))([Scan(voxels, np.diag([0.9, 1.3, 3.1, 1.0]))])
    assert np.array_equal(voxels, before)


def test_a_second_channel_on_the_same_oblique_grid_loses_no_plane() -> None:
    voxels = np.random.default_rng(5).integers(100, 300, SHAPE).astype(np.int16)
    nearly_equal = oblique_affine()
    nearly_equal[0, 3] += 3e-14
    scans = [Scan(voxels, oblique_affine()), Scan(voxels, nearly_equal)]
    image, _ = ScanToGrid(spacing_mm=(1.5, 1.5, 2.0), intensity=identity)(scans)
    assert torch.allclose(image[0], image[1], atol=1e-3)


def test_a_second_channel_keeps_its_edge_half_a_voxel_and_is_lowest_beyond() -> None:
    first = Scan(np.zeros((9, 4, 4), np.int16), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 2.4
    second = Scan(np.full((5, 4, 4), 50, np.int16), shifted)
    second.voxels[4, 3, 3] = -7
    image, _ = ScanToGrid(spacing_mm=(1, 1, 1), intensity=identity)([first, second])
    assert image[1, :, 0, 0].tolist() == [-7, -7, 50, 50, 50, 50, 50, -7, -7]
