import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medseg.preprocessing import Range, ScanToGrid, Window, ZScore
from medseg.reading import Scan
from medseg.resampling import BLOCK, axis_blocks, interpolation_matrix

SHAPE = (71, 45, 38)
AFFINE = np.array([[0, -0.9, 0, 60], [0.7, 0.05, 0, -40], [0, 0, -2.2, 10], [0, 0, 0, 1.0]])
SPACING_MM = (1.3, 0.6, 1.5)


def identity(image: torch.Tensor) -> torch.Tensor:
    return image


def scan(order: str = "C") -> Scan:
    return Scan(np.asarray(np.random.default_rng(0).integers(-900, 900, SHAPE), np.int16, order=order), AFFINE)


def averaged(scan: Scan, grid) -> np.ndarray:
    """What each working voxel averages, from the definition: a triangle of its own size around its center."""
    turned = scan.voxels.transpose(grid.axes)[tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)]
    values = turned.astype(np.float64)
    for axis, (size, scale) in enumerate(zip(grid.shape, grid.scale, strict=True)):
        width, columns = max(1.0, scale), []
        for index in range(size):
            center = min(index * scale, values.shape[axis] - 1)
            weights = np.array([max(0.0, 1 - abs(center - voxel) / width) for voxel in range(values.shape[axis])])
            columns.append(np.average(values, axis=axis, weights=weights))
        values = np.stack(columns, axis=axis)
    return values


@pytest.mark.parametrize("order", ["C", "F"])
def test_each_voxel_is_the_average_of_what_it_covers(order: str) -> None:
    image, grid = ScanToGrid(spacing_mm=SPACING_MM, intensity=identity)([scan(order)])
    assert max(grid.shape) > 2 * BLOCK
    assert min(grid.scale) < 1 < max(grid.scale)
    assert np.abs(image[0].numpy() - averaged(scan(), grid)).max() < 1e-3


@pytest.mark.parametrize("slab_voxels", [1, 5000])
def test_slabs_give_what_one_pass_gives(slab_voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    to_grid = ScanToGrid(spacing_mm=SPACING_MM, intensity=Window(-100, 200))
    whole, _ = to_grid([scan("F")])
    monkeypatch.setattr("medseg.resampling.SLAB_VOXELS", slab_voxels)
    assert torch.allclose(to_grid([scan("F")])[0], whole, atol=1e-5)


@pytest.mark.parametrize("kind", ["read-only", "reversed", "big-endian", "float32", "uint8 part"])
def test_voxels_are_taken_as_they_lie_in_memory(kind: str) -> None:
    voxels = np.abs(scan().voxels) // 8
    stored = {
        "read-only": np.frombuffer(voxels.tobytes(), np.int16).reshape(SHAPE),
        "reversed": voxels[::-1, :, ::-1].copy()[::-1, :, ::-1],
        "big-endian": voxels.astype(">i2"),
        "float32": voxels.astype(np.float32),
        "uint8 part": np.pad(voxels, 3).astype(np.uint8)[3:-3, 3:-3, 3:-3],
    }[kind]
    to_grid = ScanToGrid(spacing_mm=SPACING_MM, intensity=Window(-100, 200))
    assert torch.equal(to_grid([Scan(stored, AFFINE)])[0], to_grid([Scan(voxels, AFFINE)])[0])


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7, 6.3])
@pytest.mark.parametrize("antialias", [True, False])
def test_blocks_are_the_band_of_the_whole_matrix(scale: float, antialias: bool) -> None:
    settings = {"antialias": antialias, "first": 4.2}
    dense = torch.zeros(90, 61)
    for block in axis_blocks(61, 90, scale, length=17, **settings):
        assert torch.equal(dense[block.out], torch.zeros_like(dense[block.out]))  # each output once
        dense[block.out, block.source] = block.weights
    assert torch.equal(dense, interpolation_matrix(61, 90, scale, **settings))


@pytest.mark.parametrize("intensity", [Window(-100, 250), Range(-20, 60)], ids=["window", "range"])
def test_an_intensity_in_place_is_the_one_that_is_not(intensity: Window | Range) -> None:
    image = torch.randn(5, 6, 7) * 200
    before = image.clone()
    mapped = intensity(image)
    assert torch.equal(image, before)
    assert torch.equal(intensity.in_place(image), mapped)
    assert torch.equal(image, mapped)


def test_an_intensity_of_the_whole_image_sees_it_whole() -> None:
    settings = {"spacing_mm": SPACING_MM}
    plain, _ = ScanToGrid(intensity=identity, **settings)([scan()])
    scored, _ = ScanToGrid(intensity=ZScore(), **settings)([scan()])
    values = plain.double()
    assert torch.allclose(scored.double(), (values - values.mean()) / values.std(correction=0), atol=1e-4)


def test_a_further_channel_on_a_tilted_grid_is_interpolated_slab_by_slab() -> None:
    angle = np.deg2rad(20)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    second = Scan(scan().voxels[:, ::-1], tilt @ AFFINE @ np.diag([1.1, 1.1, 0.9, 1]))
    image, grid = ScanToGrid(spacing_mm=(1.0, 0.6, 1.5), intensity=identity)([scan(), second])
    assert grid.shape[0] > BLOCK
    index = np.stack([*np.indices(grid.shape).reshape(3, -1), np.ones(np.prod(grid.shape))])
    place = (np.linalg.inv(second.affine) @ grid.affine @ index)[:3]
    expected = map_coordinates(second.voxels.astype(np.float64), place, order=1, mode="nearest")
    limits = np.array(second.voxels.shape)[:, None] - 0.5
    expected[((place < -0.5) | (place > limits)).any(axis=0)] = second.voxels.min()
    assert np.abs(image[1].numpy().ravel() - expected).max() < 1e-2


MEMORY = """
import resource, numpy as np, torch
from medseg.preprocessing import ScanToGrid, Window
from medseg.reading import Scan
def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
to_grid = ScanToGrid(spacing_mm=(3, 3, 3), intensity=Window(-100, 200))
to_grid([Scan(np.zeros((40, 40, 40), np.int16), np.eye(4))])
scan = Scan(np.full((384, 384, 400), 40, np.int16, order="F"), np.diag([-1.0, -1, 1, 1]))
before = peak_mb()
image, _ = to_grid([scan])
print(peak_mb() - before - image.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory by getrusage")
def test_a_scan_is_never_whole_in_float32() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100  # a float32 copy has 225 MB
