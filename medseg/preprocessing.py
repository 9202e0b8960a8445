"""From a scan to the network's grid: orientation, resampling, intensity. Pure steps, without MONAI.

A scan is read as it is stored, a slab at a time, and becomes float32 only there: what is made is the image on the
working grid (`medseg.grid`), of the patient's body alone where a recipe asks for that, with its intensity mapped.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.body import body_box
from medseg.errors import DataError
from medseg.geometry import grid_difference
from medseg.geometry import spacing_mm as spacing_of
from medseg.grid import Grid, from_working_axes, kept_box, to_working_axes, turned, whole_grid
from medseg.reading import Scan
from medseg.resampling import apply_along, interpolation_matrix, nearest_label, resample, resample_onto

__all__ = [
    "Grid",
    "ImageToGrid",
    "Intensity",
    "Range",
    "ScanToGrid",
    "Window",
    "ZScore",
    "apply_along",
    "from_working_axes",
    "interpolation_matrix",
    "neighbor_slices",
    "to_working_axes",
]


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
        return self.in_place(image.clone())

    def in_place(self, image: Tensor) -> Tensor:
        """The same on the float tensor itself."""
        return image.clamp_(self.low_hu, self.high_hu).sub_(self.low_hu).div_(self.high_hu - self.low_hu)


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
        return self.in_place(image.clone())

    def in_place(self, image: Tensor) -> Tensor:
        """The same on the float tensor itself."""
        return image.sub_(self.low).div_(self.high - self.low)


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
        return whole_grid(shape, affine, self.spacing_mm)

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
        first = scans[0]
        grid = self.grid(first.voxels.shape, first.affine)
        if self.body_only:
            grid = body_grid(first.voxels, grid)
        image = torch.empty(len(scans), *grid.shape)
        for scan, channel in zip(scans, image, strict=True):
            if grid_difference(scan.voxels.shape, scan.affine, first.voxels.shape, first.affine) is None:
                fill_channel(channel, scan.voxels, grid, antialias=self.antialias, intensity=self.intensity)
            else:
                channel[:] = self.intensity(resample_onto(scan, grid))
        return image, grid

    def label(self, voxels: NDArray[np.integer], grid: Grid) -> Tensor:
        """Label map on the scan's grid `(X, Y, Z)` -> `(1, R, A, S)`, uint8, by nearest neighbor."""
        return nearest_label(voxels, grid)


def body_grid(voxels: NDArray[np.generic], grid: Grid) -> Grid:
    """The part of a whole field's `grid` that the patient's body needs; `voxels` `(X, Y, Z)` in HU."""
    scan_spacing_mm = np.divide(spacing_of(grid.affine), grid.scale).tolist()
    box = body_box(turned(voxels, grid), scan_spacing_mm)
    if box is None:
        return replace(grid, note="no body found, the whole field is kept")
    return kept_box(grid, box, what="body box")


def fill_channel(
    channel: Tensor, voxels: NDArray[np.generic], grid: Grid, *, antialias: bool, intensity: Intensity
) -> None:
    """Resample voxels `(X, Y, Z)` into `channel` `(R, A, S)` and map their intensity, without a second copy of either.

    An intensity that looks at one voxel at a time (it has `in_place`) is applied while a slab is in the CPU's cache.
    """
    in_place = getattr(intensity, "in_place", None)
    resample(voxels, grid, antialias=antialias, out=channel, then=in_place)
    if in_place is None:
        channel.copy_(intensity(channel))


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
        image = torch.empty(len(scans), *grid.shape)
        for scan, channel in zip(scans, image, strict=True):
            fill_channel(channel, scan.voxels, grid, antialias=self.antialias, intensity=self.intensity)
        return image, grid

    def label(self, voxels: NDArray[np.integer], grid: Grid) -> Tensor:
        """Label map `(X, Y, 1)` on the image's pixels -> `(1, *grid.shape)`, uint8, by nearest neighbor."""
        return nearest_label(voxels, grid)


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
