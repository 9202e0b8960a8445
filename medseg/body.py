"""Where the patient is in a CT: a box found at low resolution, so that nothing is spent on air and table."""

from collections.abc import Sequence

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d

TISSUE_HU = -500  # between lung or air and everything else
STEP_MM = 5.0  # voxels looked at are about this far apart
MARGIN_MM = 15.0
FURTHER_PIECE = 0.1  # of the largest one's volume: an arm, the other leg


def body_box(voxels: NDArray[np.generic], spacing_mm: Sequence[float]) -> tuple[slice, slice, slice] | None:
    """Box around the body with a margin, in voxels of a scan; None if there is nothing denser than lung.

    Pieces thinner than about two steps (the table's shells, cables, clothes) are no body, as long as something
    thicker is there. Of the rest the largest piece counts, with every further one at least a tenth as large.

    Args:
        voxels: `(X, Y, Z)` in HU; only every few voxels are read.
        spacing_mm: voxel edge lengths along its axes, in mm.
    """
    steps = [max(1, round(STEP_MM / length)) for length in spacing_mm]
    tissue = voxels[tuple(slice(None, None, step) for step in steps)] > TISSUE_HU  # type: ignore[operator]
    thick = _opened(torch.from_numpy(tissue)).numpy()
    pieces = cc3d.connected_components(np.ascontiguousarray(thick if thick.any() else tissue), connectivity=6)
    found = cc3d.statistics(pieces)
    sizes = found["voxel_counts"][1:]
    if len(sizes) == 0:
        return None
    boxes = [box for box, n in zip(found["bounding_boxes"][1:], sizes, strict=True) if n >= FURTHER_PIECE * sizes.max()]
    sides = []
    for axis, (step, length, size) in enumerate(zip(steps, spacing_mm, voxels.shape, strict=True)):
        # between the last voxel seen in the body and the next one seen outside of it lies its edge
        margin = step + round(MARGIN_MM / length)
        low = min(box[axis].start for box in boxes) * step - margin
        high = (max(box[axis].stop for box in boxes) - 1) * step + 1 + margin
        sides.append(slice(max(0, low), min(size, high)))
    return sides[0], sides[1], sides[2]


def _opened(mask: Tensor) -> Tensor:
    """`mask` `(X, Y, Z)` without what is thinner than 3 voxels; beyond the field it goes on as at the edge."""
    air = max_pool3d((~mask)[None].float(), kernel_size=3, stride=1, padding=1)
    return max_pool3d(1 - air, kernel_size=3, stride=1, padding=1)[0] > 0.5
