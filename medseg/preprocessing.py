"""From a scan to the network's grid: orientation, resampling, intensity. Pure steps, without MONAI.

The working grid is RAS: axes run to the patient's right, front and head as nearly as the scan's own axes allow, with
the recipe's spacing. Its first voxel is the scan's own corner voxel, as in MONAI's `Spacingd`; an oblique scan keeps
its tilt, so every step works along one axis at a time and nothing is interpolated twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from torch import Tensor

from medseg.errors import DataError
from medseg.geometry import grid_difference
from medseg.geometry import spacing_mm as spacing_of
from medseg.reading import Scan


class Intensity(Protocol):
    """Maps the intensities of one channel to what the network sees."""

    def __call__(self, image: Tensor) -> Tensor:
        """Image of any shape -> image of the same shape."""


class Window:
    """Clip CT intensities to `[low_hu, high_hu]` and scale to `[0, 1]`; any shape."""

    def __init__(self, low_hu: float, high_hu: float) -> None:
        if low_hu >= high_hu:
            raise ValueError(f"Window needs low_hu < high_hu, got {low_hu} and {high_hu} HU; swap them?")
        self.low_hu, self.high_hu = low_hu, high_hu

    def __call__(self, image: Tensor) -> Tensor:
        """HU of any shape -> the same shape, in `[0, 1]`."""
        return (image.clamp(self.low_hu, self.high_hu) - self.low_hu) / (self.high_hu - self.low_hu)


class ZScore:
    """Subtract the mean and divide by the standard deviation of the whole image (MR has no unit); any shape."""

    def __call__(self, image: Tensor) -> Tensor:
        """Intensities of any shape -> the same shape, mean 0 and deviation 1; a flat image becomes 0."""
        deviation, mean = torch.std_mean(image, correction=0)
        return (image - mean) / deviation.clamp(min=1e-6)


@dataclass(frozen=True)
class Grid:
    """The working grid of one scan, and what leads back to the scan's own grid.

    Attributes:
        shape: working grid `(R, A, S)`.
        affine: `(4, 4)`, working voxel index -> RAS mm.
        scan_shape: the scan's own `(X, Y, Z)`.
        scan_affine: `(4, 4)`, the scan's own voxel index -> RAS mm.
        axes: for each working axis the scan's axis it comes from.
        flips: for each working axis whether it runs against the scan's axis.
        scale: for each working axis, scan voxels per working voxel.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    scan_shape: tuple[int, int, int]
    scan_affine: NDArray[np.float64]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    scale: tuple[float, float, float]

    @property
    def turned_shape(self) -> tuple[int, int, int]:
        """The scan's own grid with its axes in working order."""
        return self.scan_shape[self.axes[0]], self.scan_shape[self.axes[1]], self.scan_shape[self.axes[2]]


class ScanToGrid:
    """Bring the channels of one case onto the working grid.

    Args:
        spacing_mm: edge lengths of the working voxels along right, front and head, in mm.
        intensity: maps the intensities of each channel.
        antialias: average over the working voxel where it is larger than the scan's (less noise than picking
            points); False interpolates between neighbors only, as MONAI's `Spacingd`.
    """

    def __init__(self, *, spacing_mm: Sequence[float], intensity: Intensity, antialias: bool = True) -> None:
        if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise ValueError(f"spacing_mm needs three positive lengths (right, front, head), got {list(spacing_mm)}.")
        self.spacing_mm = tuple(spacing_mm)
        self.intensity = intensity
        self.antialias = antialias

    def grid(self, shape: Sequence[int], affine: NDArray[np.float64]) -> Grid:
        """Working grid of a scan of `shape` `(X, Y, Z)` and `affine`; no voxel is read."""
        turn = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
        axes = tuple(int(axis) for axis in np.argsort(turn[:, 0]))
        flips = tuple(bool(turn[axis, 1] < 0) for axis in axes)
        turned_affine = affine @ inv_ornt_aff(turn, shape)
        turned_shape = [shape[axis] for axis in axes]
        scale = np.divide(self.spacing_mm, spacing_of(turned_affine))
        size = [max(1, round((n - 1) / step) + 1) for n, step in zip(turned_shape, scale, strict=True)]
        return Grid(
            shape=(size[0], size[1], size[2]),
            affine=turned_affine @ np.diag([*scale, 1.0]),
            scan_shape=(shape[0], shape[1], shape[2]),
            scan_affine=affine,
            axes=(axes[0], axes[1], axes[2]),
            flips=(flips[0], flips[1], flips[2]),
            scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        )

    def __call__(self, scans: Sequence[Scan]) -> tuple[Tensor, Grid]:
        """Channels of one case -> image `(C, R, A, S)`, float32, and its grid.

        The first channel sets the grid; the others are interpolated onto it by their affines (no registration).

        Raises:
            DataError: if a further channel does not overlap the first.
        """
        grid = self.grid(scans[0].voxels.shape, scans[0].affine)
        first = resample(torch.from_numpy(to_working_axes(scans[0].voxels, grid)), grid, antialias=self.antialias)
        others = [self._further_channel(scan, scans[0], grid) for scan in scans[1:]]
        return torch.stack([self.intensity(channel) for channel in (first, *others)]), grid

    def _further_channel(self, scan: Scan, first: Scan, grid: Grid) -> Tensor:
        if grid_difference(scan.voxels.shape, scan.affine, first.voxels.shape, first.affine) is None:
            return resample(torch.from_numpy(to_working_axes(scan.voxels, grid)), grid, antialias=self.antialias)
        return resample_onto(scan, grid)

    def label(self, voxels: NDArray[np.integer], grid: Grid) -> Tensor:
        """Label map on the scan's grid `(X, Y, Z)` -> `(1, R, A, S)`, uint8, by nearest neighbor."""
        turned = torch.from_numpy(to_working_axes(voxels, grid).astype(np.uint8))
        for axis, (size, scale) in enumerate(zip(grid.shape, grid.scale, strict=True)):
            position = (torch.arange(size) * scale).round().long().clamp(max=turned.shape[axis] - 1)
            turned = turned.index_select(axis, position)
        return turned[None]


def to_working_axes(voxels: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """Turn `(X, Y, Z)` voxels into working axis order and direction; values untouched, contiguous."""
    turned = voxels.transpose(grid.axes)
    step = tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)
    return np.ascontiguousarray(turned[step])


def from_working_axes(voxels: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """Undo `to_working_axes`."""
    step = tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)
    return np.ascontiguousarray(voxels[step].transpose(np.argsort(grid.axes)))


def resample(turned: Tensor, grid: Grid, *, antialias: bool) -> Tensor:
    """Voxels `(X, Y, Z)` in working axis order -> `(R, A, S)` float32, one axis after the other."""
    image = turned.float()
    for axis, (size, scale) in enumerate(zip(grid.shape, grid.scale, strict=True)):
        if size != image.shape[axis] or abs(scale - 1) > 1e-6:
            weights = interpolation_matrix(image.shape[axis], size, scale, antialias=antialias)
            image = apply_along(weights, image, axis)
    return image


def interpolation_matrix(in_size: int, out_size: int, scale: float, *, antialias: bool = False) -> Tensor:
    """Weights `(out_size, in_size)` of linear interpolation at positions `0, scale, 2 scale, ...` of the input.

    Positions beyond the last voxel take the last voxel. With `antialias` the triangle widens to the output voxel when
    `scale` is above one, so that each output averages what it covers.
    """
    width = max(1.0, scale) if antialias else 1.0
    position = (torch.arange(out_size, dtype=torch.float64) * scale).clamp(max=in_size - 1)
    distance = (position[:, None] - torch.arange(in_size, dtype=torch.float64)[None]).abs()
    weights = (1 - distance / width).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def apply_along(weights: Tensor, image: Tensor, axis: int) -> Tensor:
    """Multiply `weights` `(out, in)` along one axis of `image`; the other axes keep their sizes."""
    return torch.tensordot(weights, image, dims=([1], [axis])).movedim(0, axis)


def resample_onto(scan: Scan, grid: Grid) -> Tensor:
    """Linear interpolation of another channel onto a working grid `(R, A, S)`, float32.

    Up to half a voxel beyond its outermost voxel centers a channel keeps their value; farther out its lowest value
    stands.

    Raises:
        DataError: if the two fields of view do not overlap.
    """
    to_scan = np.linalg.inv(scan.affine) @ grid.affine
    outside = np.zeros(grid.shape, dtype=bool)
    index = np.ogrid[tuple(slice(size) for size in grid.shape)]
    for row, size in zip(to_scan[:3], scan.voxels.shape, strict=True):
        position = row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3]
        outside |= (position < -0.5) | (position > size - 0.5)
    if outside.all():
        raise DataError(
            "a further channel does not overlap the first one in space; check that both were taken of the same patient "
            "and exported with their positions."
        )
    onto = affine_transform(
        scan.voxels.astype(np.float32), to_scan[:3, :3], to_scan[:3, 3], grid.shape, order=1, mode="nearest"
    )
    onto[outside] = scan.voxels.min()
    return torch.from_numpy(onto)
