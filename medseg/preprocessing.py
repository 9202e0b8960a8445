"""From a scan to the network's grid: orientation, resampling, intensity. Pure steps, without MONAI.

The working grid is RAS: axes run to the patient's right, front and head as nearly as the scan's own axes allow, with
the recipe's spacing. Its first voxel is the scan's own corner voxel, as in MONAI's `Spacingd`; an oblique scan keeps
its tilt, so every step works along one axis at a time and nothing is interpolated twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from torch import Tensor

from medseg.body import body_box
from medseg.errors import DataError
from medseg.geometry import grid_difference
from medseg.geometry import spacing_mm as spacing_of
from medseg.reading import Scan, Unit


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


class Range:
    """Scale stored values `[low, high]` to `[0, 1]`, such as the 0 ... 255 of a photograph; any shape, not clipped."""

    def __init__(self, low: float = 0, high: float = 255) -> None:
        if low >= high:
            raise ValueError(f"Range needs low < high, got {low} and {high}; swap them?")
        self.low, self.high = low, high

    def __call__(self, image: Tensor) -> Tensor:
        """Stored values of any shape -> the same shape."""
        return (image - self.low) / (self.high - self.low)


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
        unit: of lengths; in a grid of an image "px", and the affines lead to pixels.
        start: for each working axis the working voxels that were left out before the box that is kept; 0 everywhere
            if the whole field is kept. `shape` and `affine` are the box's.
        note: what a report should say of the box, such as "body box 212x180x120 of 273x273x120".
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    scan_shape: tuple[int, int, int]
    scan_affine: NDArray[np.float64]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    scale: tuple[float, float, float]
    unit: Unit = "mm"
    start: tuple[int, int, int] = (0, 0, 0)
    note: str = ""

    @property
    def turned_shape(self) -> tuple[int, int, int]:
        """The scan's own grid with its axes in working order."""
        return self.scan_shape[self.axes[0]], self.scan_shape[self.axes[1]], self.scan_shape[self.axes[2]]

    @property
    def covered(self) -> tuple[slice, slice, slice]:
        """Scan voxels, axes in working order, that the box decides about; all others are background.

        A voxel belongs to the nearest working voxel; beyond the field's last working voxel the last one decides.
        """
        first, second, third = (
            _covered(*axis) for axis in zip(self.turned_shape, self.shape, self.scale, self.start, strict=True)
        )
        return first, second, third


def _covered(scan_size: int, size: int, scale: float, start: int) -> slice:
    """Scan voxels along one axis whose nearest working voxel is in the box."""
    before = 0 if start == 0 else math.ceil((start - 0.5) * scale)
    whole = start + size >= working_size(scan_size, scale)
    after = scan_size if whole else math.ceil((start + size - 0.5) * scale)
    return slice(min(before, scan_size), min(after, scan_size))


def working_size(scan_size: int, scale: float) -> int:
    """Working voxels along an axis of the whole field, as MONAI's `Spacingd` counts them."""
    return max(1, round((scan_size - 1) / scale) + 1)


class ScanToGrid:
    """Bring the channels of one case onto the working grid.

    Args:
        spacing_mm: edge lengths of the working voxels along right, front and head, in mm.
        intensity: maps the intensities of each channel.
        antialias: average over the working voxel where it is larger than the scan's (less noise than picking
            points); False interpolates between neighbors only, as MONAI's `Spacingd`.
        body_only: keep only the box around the patient's body, which is found in the first channel's HU; what lies
            outside comes back as background.
    """

    def __init__(
        self, *, spacing_mm: Sequence[float], intensity: Intensity, antialias: bool = True, body_only: bool = False
    ) -> None:
        if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise ValueError(f"spacing_mm needs three positive lengths (right, front, head), got {list(spacing_mm)}.")
        self.spacing_mm = tuple(spacing_mm)
        self.intensity = intensity
        self.antialias, self.body_only = antialias, body_only

    def grid(self, shape: Sequence[int], affine: NDArray[np.float64]) -> Grid:
        """Working grid of the whole field of a scan of `shape` `(X, Y, Z)` and `affine`; no voxel is read."""
        turn = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
        axes = tuple(int(axis) for axis in np.argsort(turn[:, 0]))
        flips = tuple(bool(turn[axis, 1] < 0) for axis in axes)
        turned_affine = affine @ inv_ornt_aff(turn, shape)
        turned_shape = [shape[axis] for axis in axes]
        scale = np.divide(self.spacing_mm, spacing_of(turned_affine))
        size = [working_size(n, step) for n, step in zip(turned_shape, scale, strict=True)]
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
            DataError: if a further channel does not overlap the first, or these are 2D images, which have no spacing.
        """
        if scans[0].unit != "mm":
            raise DataError(
                "a 2D image has no mm; this recipe is for scans, start from configs/unet_images.json instead"
            )
        grid = self.grid(scans[0].voxels.shape, scans[0].affine)
        if self.body_only:
            grid = body_grid(scans[0].voxels, grid)
        first = resample(torch.from_numpy(to_working_axes(scans[0].voxels, grid)), grid, antialias=self.antialias)
        others = [self._further_channel(scan, scans[0], grid) for scan in scans[1:]]
        return torch.stack([self.intensity(channel) for channel in (first, *others)]), grid

    def _further_channel(self, scan: Scan, first: Scan, grid: Grid) -> Tensor:
        if grid_difference(scan.voxels.shape, scan.affine, first.voxels.shape, first.affine) is None:
            return resample(torch.from_numpy(to_working_axes(scan.voxels, grid)), grid, antialias=self.antialias)
        return resample_onto(scan, grid)

    def label(self, voxels: NDArray[np.integer], grid: Grid) -> Tensor:
        """Label map on the scan's grid `(X, Y, Z)` -> `(1, R, A, S)`, uint8, by nearest neighbor."""
        return nearest_label(voxels, grid)


def body_grid(voxels: NDArray[np.generic], grid: Grid) -> Grid:
    """The part of a whole field's `grid` that the patient's body needs; `voxels` `(X, Y, Z)` in HU."""
    turned = _turned(voxels, grid)
    box = body_box(
        turned, [step * scale for step, scale in zip(spacing_of(grid.affine), 1 / np.array(grid.scale), strict=True)]
    )
    if box is None:
        return replace(grid, note="no body found, the whole field is kept")
    start = [math.floor(side.start / scale) for side, scale in zip(box, grid.scale, strict=True)]
    stop = [
        min(size, math.ceil((side.stop - 1) / scale) + 1)
        for side, scale, size in zip(box, grid.scale, grid.shape, strict=True)
    ]
    shape = [last - first for first, last in zip(start, stop, strict=True)]
    move = np.eye(4)
    move[:3, 3] = start
    kept, whole = ("x".join(map(str, size)) for size in (shape, grid.shape))
    return replace(
        grid,
        shape=(shape[0], shape[1], shape[2]),
        affine=grid.affine @ move,
        start=(start[0], start[1], start[2]),
        note=f"body box {kept} of {whole}",
    )


class ImageToGrid:
    """Bring the channels of one 2D image onto the working grid: its own pixels, or larger ones. Nothing is in mm.

    Args:
        intensity: maps the intensities of each channel.
        pixel_scale: image pixels per working pixel; 1 keeps the image's own.
        longest_edge: or: working pixels along the image's longer edge, for photographs of any distance and size.
        antialias: average over a working pixel that is larger than the image's.
    """

    def __init__(
        self,
        *,
        intensity: Intensity,
        pixel_scale: float = 1.0,
        longest_edge: int | None = None,
        antialias: bool = True,
    ) -> None:
        if pixel_scale <= 0:
            raise ValueError(f"pixel_scale is {pixel_scale}; give image pixels per working pixel, such as 2")
        if longest_edge is not None and (pixel_scale != 1 or longest_edge < 2):
            raise ValueError(
                f"longest_edge is {longest_edge} beside pixel_scale {pixel_scale}; set one, 2 or more pixels"
            )
        self.intensity, self.pixel_scale, self.longest_edge = intensity, pixel_scale, longest_edge
        self.antialias = antialias

    def grid(self, shape: Sequence[int], affine: NDArray[np.float64]) -> Grid:
        """Working grid of an image `(X, Y, 1)`; no pixel is read."""
        scale = self.pixel_scale
        if self.longest_edge is not None:
            scale = max(1, max(shape[:2]) - 1) / (self.longest_edge - 1)
        width, height = (max(1, round((n - 1) / scale) + 1) for n in shape[:2])
        return Grid(
            shape=(width, height, 1),
            affine=affine @ np.diag([scale, scale, 1.0, 1.0]),
            scan_shape=(shape[0], shape[1], 1),
            scan_affine=affine,
            axes=(0, 1, 2),
            flips=(False, False, False),
            scale=(scale, scale, 1.0),
            unit="px",
        )

    def __call__(self, scans: Sequence[Scan]) -> tuple[Tensor, Grid]:
        """Channels of one image -> `(C, X, Y, 1)`, float32, and its grid.

        Raises:
            DataError: if these are no 2D images, or the channels have different sizes.
        """
        sizes = {scan.voxels.shape for scan in scans}
        if any(scan.unit != "px" for scan in scans):
            raise DataError(
                "a scan in mm, where this recipe works on 2D images (PNG, JPEG, TIFF); use a recipe for scans"
            )
        if len(sizes) > 1:
            shown = ", ".join(f"{size[0]} x {size[1]}" for size in sorted(sizes))
            raise DataError(f"the channels have different sizes, {shown} pixels; export them on the same pixels")
        grid = self.grid(scans[0].voxels.shape, scans[0].affine)
        channels = [torch.from_numpy(np.ascontiguousarray(scan.voxels)) for scan in scans]
        return torch.stack(
            [self.intensity(resample(channel, grid, antialias=self.antialias)) for channel in channels]
        ), grid

    def label(self, voxels: NDArray[np.integer], grid: Grid) -> Tensor:
        """Label map `(X, Y, 1)` on the image's pixels -> `(1, *grid.shape)`, uint8, by nearest neighbor."""
        return nearest_label(voxels, grid)


def nearest_label(voxels: NDArray[np.integer], grid: Grid) -> Tensor:
    """Label map on the scan's grid `(X, Y, Z)` -> `(1, *grid.shape)`, uint8, by nearest neighbor."""
    turned = torch.from_numpy(to_working_axes(voxels, grid).astype(np.uint8))
    for axis, (size, scale, start) in enumerate(zip(grid.shape, grid.scale, grid.start, strict=True)):
        position = ((start + torch.arange(size)) * scale).round().long().clamp(max=turned.shape[axis] - 1)
        turned = turned.index_select(axis, position)
    return turned[None]


def neighbor_slices(volume: Tensor, neighbors: int, chosen: slice = slice(None)) -> Tensor:
    """Each slice along the last axis with the slices around it as channels; beyond the ends the end slice repeats.

    Args:
        volume: `(..., C, X, Y, Z)`.
        neighbors: slices on each side.
        chosen: which slices; all by default.

    Returns:
        `(..., C (2 neighbors + 1), X, Y, chosen)`; a channel's slices lie together, from the lowest to the highest.
    """
    if neighbors == 0:
        return volume[..., chosen]
    middle = torch.arange(volume.shape[-1], device=volume.device)[chosen]
    steps = range(-neighbors, neighbors + 1)
    around = [volume[..., (middle + step).clamp(0, volume.shape[-1] - 1)] for step in steps]
    return torch.stack(around, dim=-4).flatten(-5, -4)


def to_working_axes(voxels: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """Turn `(X, Y, Z)` voxels into working axis order and direction; values untouched, contiguous."""
    return np.ascontiguousarray(_turned(voxels, grid))


def _turned(voxels: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """The same voxels seen in working axis order and direction; nothing is copied."""
    step = tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)
    return voxels.transpose(grid.axes)[step]


def from_working_axes(voxels: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """Undo `to_working_axes`."""
    step = tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)
    return np.ascontiguousarray(voxels[step].transpose(np.argsort(grid.axes)))


def resample(turned: Tensor, grid: Grid, *, antialias: bool) -> Tensor:
    """Voxels `(X, Y, Z)` in working axis order -> `(R, A, S)` float32, one axis after the other."""
    image = turned.float()
    for axis, (size, scale, start) in enumerate(zip(grid.shape, grid.scale, grid.start, strict=True)):
        if size != image.shape[axis] or abs(scale - 1) > 1e-6:
            weights = interpolation_matrix(image.shape[axis], size, scale, antialias=antialias, first=start * scale)
            image = apply_along(weights, image, axis)
    return image


def interpolation_matrix(
    in_size: int, out_size: int, scale: float, *, antialias: bool = False, first: float = 0.0
) -> Tensor:
    """Weights `(out_size, in_size)` of linear interpolation at positions `first, first + scale, ...` of the input.

    Positions beyond the first or last voxel take that voxel. With `antialias` the triangle widens to the output voxel
    when `scale` is above one, so that each output averages what it covers.
    """
    width = max(1.0, scale) if antialias else 1.0
    position = (first + torch.arange(out_size, dtype=torch.float64) * scale).clamp(min=0, max=in_size - 1)
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
