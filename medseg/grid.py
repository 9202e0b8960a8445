"""The working grid: where the voxels that a network sees lie, and what leads back to the scan's own grid.

It is RAS: axes run to the patient's right, front and head as nearly as the scan's own axes allow, so an oblique scan
keeps its tilt. Its first voxel is the scan's own corner voxel, as in MONAI's `Spacingd`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import spacing_mm as spacing_of
from medseg.geometry import world_axes
from medseg.reading import Unit

Voxel = TypeVar("Voxel", bound=np.generic)


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


def whole_grid(shape: Sequence[int], affine: NDArray[np.float64], spacing_mm: Sequence[float]) -> Grid:
    """Working grid of the whole field of a scan.

    Args:
        shape: the scan's own `(X, Y, Z)`.
        affine: `(4, 4)`, the scan's own voxel index -> RAS mm.
        spacing_mm: edge lengths of the working voxels along right, front and head, in mm.
    """
    directions = world_axes(affine)
    axes = [[axis for axis, _ in directions].index(world) for world in range(3)]
    flips = [directions[axis][1] < 0 for axis in axes]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for working, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        turn[axis, working] = -1 if flip else 1
        turn[axis, 3] = shape[axis] - 1 if flip else 0
    turned_affine = affine @ turn
    scale = np.divide(spacing_mm, spacing_of(turned_affine))
    size = [working_size(shape[axis], step) for axis, step in zip(axes, scale, strict=True)]
    return Grid(
        shape=(size[0], size[1], size[2]),
        affine=turned_affine @ np.diag([*scale, 1.0]),
        scan_shape=(shape[0], shape[1], shape[2]),
        scan_affine=affine,
        axes=(axes[0], axes[1], axes[2]),
        flips=(flips[0], flips[1], flips[2]),
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
    )


def working_size(scan_size: int, scale: float) -> int:
    """Working voxels along an axis of the whole field, as MONAI's `Spacingd` counts them."""
    return max(1, round((scan_size - 1) / scale) + 1)


def kept_box(grid: Grid, box: Sequence[slice], *, what: str) -> Grid:
    """The part of a whole field's `grid` in which `box` lies.

    Args:
        grid: of the whole field.
        box: scan voxels, axes in working order.
        what: names the box in the note, such as "body box".
    """
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
        note=f"{what} {kept} of {whole}",
    )


def turned(voxels: NDArray[Voxel], grid: Grid) -> NDArray[Voxel]:
    """`(..., X, Y, Z)` voxels with their last three axes in working order and direction; nothing is copied."""
    leading = voxels.ndim - 3
    ordered = voxels.transpose(*range(leading), *(leading + axis for axis in grid.axes))
    return ordered[(..., *(slice(None, None, -1 if flip else None) for flip in grid.flips))]


def to_working_axes(voxels: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """Turn `(X, Y, Z)` voxels into working axis order and direction; values untouched, contiguous."""
    return np.ascontiguousarray(turned(voxels, grid))


def from_working_axes(voxels: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    """Undo `to_working_axes`."""
    step = tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)
    return np.ascontiguousarray(voxels[step].transpose(np.argsort(grid.axes)))


def _covered(scan_size: int, size: int, scale: float, start: int) -> slice:
    """Scan voxels along one axis whose nearest working voxel is in the box."""
    before = 0 if start == 0 else math.ceil((start - 0.5) * scale)
    whole = start + size >= working_size(scan_size, scale)
    after = scan_size if whole else math.ceil((start + size - 0.5) * scale)
    return slice(min(before, scan_size), min(after, scan_size))
