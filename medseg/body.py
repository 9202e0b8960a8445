"""Where the patient is in a CT: a box found at low resolution, so that nothing is spent on air and table."""

from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

TISSUE_HU = -500  # between lung or air and everything else
LUNG_HU = -900  # between air or foam and lung
STEP_MM = 3.0  # voxels looked at are at most about this far apart
THICK = 5  # steps: what is thinner is table, cable or cloth
MARGIN_MM = 5.0
FURTHER_PIECE = 0.02  # of the largest one's volume: an arm, the other leg

CIRCLE = 2  # steps: so near to the field's side is at its end

Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]


def body_box(voxels: NDArray[np.generic], spacing_mm: Sequence[float]) -> Box | None:
    """Box around the body with a margin, in voxels of a scan; None if there is nothing denser than lung.

    What is thinner than about 12 mm (the table's shells, cables, clothes) is no body, as long as something thicker is
    there. Of the rest the largest piece counts, with every further one at least 2 % as large. Lung inside the
    chest wall is in the box anyway; where the field cuts through the lungs, the box ends with the lung.

    Args:
        voxels: `(X, Y, Z)` in HU; only every few voxels are read.
        spacing_mm: voxel edge lengths along its axes, in mm.
    """
    steps = [max(1, round(STEP_MM / length)) for length in spacing_mm]
    seen: NDArray[Any] = voxels[tuple(slice(None, None, step) for step in steps)]
    tissue = _largest_pieces(seen > TISSUE_HU)
    if tissue is None:
        return None
    with_lung = _largest_pieces(smoothed(seen) > LUNG_HU) or tissue
    first, second, third = (
        _side(own, lung, step, round(MARGIN_MM / length), size)
        for own, lung, step, length, size in zip(tissue, with_lung, steps, spacing_mm, voxels.shape, strict=True)
    )
    return first, second, third


def _largest_pieces(mask: Mask) -> Box | None:
    """Box around the largest piece and those nearly as large."""
    thick = opened(mask, THICK)
    pieces = cc3d.connected_components(np.ascontiguousarray(thick if thick.any() else mask), connectivity=6)
    found = cc3d.statistics(pieces)
    sizes = found["voxel_counts"][1:]
    if len(sizes) == 0:
        return None
    boxes = [box for box, n in zip(found["bounding_boxes"][1:], sizes, strict=True) if n >= FURTHER_PIECE * sizes.max()]
    first, second, third = (
        slice(min(side.start for side in sides), max(side.stop for side in sides)) for sides in zip(*boxes, strict=True)
    )
    return first, second, third


def _side(tissue: slice, with_lung: slice, step: int, margin: int, size: int) -> slice:
    """One axis of the box in voxels, of sides that count every `step`th voxel.

    Between the last voxel seen in the body and the next one seen outside of it lies its edge, so a step belongs to the
    margin. Where lung runs out of the field, so does the body; a field that is a circle touches its square.
    """
    low, high = tissue.start * step - step - margin, (tissue.stop - 1) * step + 1 + step + margin
    if with_lung.start <= CIRCLE:
        low = 0
    if (with_lung.stop - 1 + CIRCLE) * step >= size - step:
        high = size
    return slice(max(0, low), min(size, high))


def opened(mask: Mask, thick: int) -> Mask:
    """`mask` without what is thinner than `thick` voxels, an odd number; at the field's edge it goes on outside."""
    for join in (np.logical_and, np.logical_or):
        for axis in range(mask.ndim):
            mask = _along(mask, axis, thick, join)
    return mask


def smoothed(seen: NDArray[Any]) -> NDArray[np.float32]:
    """Mean of each voxel and its 26 neighbors, of HU clipped to air ... water, which padding would otherwise spoil."""
    total = np.clip(seen, -1000, 0).astype(np.float32)
    for axis in range(seen.ndim):
        total = _along(total, axis, 3, np.add)
    return total / np.float32(27)


def _along(values: NDArray[Any], axis: int, length: int, join: np.ufunc) -> NDArray[Any]:
    """Join each voxel with its neighbors along one axis, `length` of them in all; beyond the ends the end repeats."""
    padding = [(length // 2, length // 2) if other == axis else (0, 0) for other in range(values.ndim)]
    padded = np.moveaxis(np.pad(values, padding, mode="edge"), axis, 0)
    joined = padded[: values.shape[axis]].copy()
    for shift in range(1, length):
        join(joined, padded[shift : shift + values.shape[axis]], out=joined)
    return np.moveaxis(joined, 0, axis)
