"""From the scan's voxels to the working grid, one axis at a time, a slab at a time.

Linear interpolation along an axis is a product with a banded matrix. Small dense blocks along its band, multiplied
straight from the stored voxels, beat gathering neighbors voxel by voxel; stored order and direction are only another
order of the blocks, so a scan is neither turned nor converted as a whole.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import DataError
from medseg.grid import Grid, turned
from medseg.reading import Scan

BLOCK = 32  # outputs of a block: their inputs are few, and the product is still large enough to be fast
SLAB_VOXELS = 2**22  # 16 MB as float32

InPlace = Callable[[Tensor], object]


@dataclass(frozen=True)
class Block:
    """Weights of a few outputs that lie together: `out = weights @ image[source]` along one axis."""

    out: slice
    source: slice
    weights: Tensor


def resample(
    voxels: NDArray[np.generic], grid: Grid, *, antialias: bool, out: Tensor | None = None, then: InPlace | None = None
) -> Tensor:
    """Voxels `(X, Y, Z)` as stored -> working grid `(R, A, S)` float32, by linear interpolation.

    Args:
        voxels: of any real type and memory order; a slab of them at a time becomes float32.
        grid: the working grid.
        antialias: average over the working voxel where it is larger than the scan's.
        out: where to put the result, `grid.shape`.
        then: changes each finished part in place, voxel by voxel, such as an intensity window.
    """
    view = turned(voxels, grid)
    slow, middle, fast = (int(axis) for axis in np.argsort([-abs(step) for step in view.strides], kind="stable"))
    result = torch.empty(grid.shape) if out is None else out
    by_slab, view = result.permute(slow, middle, fast), view.transpose(slow, middle, fast)

    def blocks(axis: int, length: int) -> list[Block]:
        scale = grid.scale[axis]
        sizes = grid.turned_shape[axis], grid.shape[axis]
        return axis_blocks(*sizes, scale, antialias=antialias, first=grid.start[axis] * scale, length=length)

    rows, columns = blocks(middle, BLOCK), blocks(fast, BLOCK)
    plane = math.prod(_span(side).stop - _span(side).start for side in (rows, columns))
    thickness = SLAB_VOXELS // plane / grid.scale[slow]
    for slab in blocks(slow, max(1, min(BLOCK, int(thickness)))):
        part = torch.from_numpy(view[slab.source, _span(rows), _span(columns)].astype(np.float32, order="C"))
        part = _last(columns, _middle(rows, part))
        finished = torch.mm(slab.weights, part.view(len(part), -1)).view(-1, *part.shape[1:])
        if then is not None:
            then(finished)
        by_slab[slab.out] = finished
    return result


def axis_blocks(
    in_size: int,
    out_size: int,
    scale: float,
    *,
    antialias: bool = False,
    first: float = 0.0,
    length: int = BLOCK,
) -> list[Block]:
    """`interpolation_matrix` as dense blocks of `length` outputs along its band.

    Args:
        in_size: voxels of the input.
        out_size: voxels of the output.
        scale: input voxels per output voxel.
        antialias: as of `interpolation_matrix`.
        first: position of the first output among the inputs.
        length: outputs of a block.
    """
    width = max(1.0, scale) if antialias else 1.0
    position = (first + torch.arange(out_size, dtype=torch.float64) * scale).clamp(min=0, max=in_size - 1)
    found = []
    for begin in range(0, out_size, length):
        some = position[begin : begin + length]
        low = max(0, math.ceil(float(some[0]) - width))
        high = min(in_size, math.floor(float(some[-1]) + width) + 1)
        weights = _weights(some, torch.arange(low, high, dtype=torch.float64), width)
        found.append(Block(slice(begin, begin + len(some)), slice(low, high), weights))
    return found


def interpolation_matrix(
    in_size: int, out_size: int, scale: float, *, antialias: bool = False, first: float = 0.0
) -> Tensor:
    """Weights `(out_size, in_size)` of linear interpolation at positions `first, first + scale, ...` of the input.

    Positions beyond the first or last voxel take that voxel. With `antialias` the triangle widens to the output voxel
    when `scale` is above one, so that each output averages what it covers.
    """
    position = (first + torch.arange(out_size, dtype=torch.float64) * scale).clamp(min=0, max=in_size - 1)
    return _weights(position, torch.arange(in_size, dtype=torch.float64), max(1.0, scale) if antialias else 1.0)


def apply_along(weights: Tensor, image: Tensor, axis: int) -> Tensor:
    """Multiply `weights` `(out, in)` along one axis of `image`; the other axes keep their sizes."""
    return torch.tensordot(weights, image, dims=([1], [axis])).movedim(0, axis)


def nearest_label(voxels: NDArray[np.integer], grid: Grid) -> Tensor:
    """Label map on the scan's grid `(X, Y, Z)` -> `(1, *grid.shape)`, uint8, by nearest neighbor."""
    label = turned(voxels, grid)
    axes = sorted(range(3), key=lambda axis: grid.shape[axis] / label.shape[axis])  # what shrinks most comes first
    for axis in axes:
        position = np.rint((grid.start[axis] + np.arange(grid.shape[axis])) * grid.scale[axis]).astype(np.int64)
        label = label.take(position.clip(max=label.shape[axis] - 1), axis=axis)
    return torch.from_numpy(np.ascontiguousarray(label, dtype=np.uint8))[None]


def resample_onto(scan: Scan, grid: Grid) -> Tensor:
    """Linear interpolation of another channel onto a working grid `(R, A, S)`, float32.

    Up to half a voxel beyond its outermost voxel centers a channel keeps their value; farther out its lowest value
    stands.

    Raises:
        DataError: if the two fields of view do not overlap.
    """
    from scipy.ndimage import affine_transform  # a fifth of a second to import, and most cases have one channel

    to_scan = np.linalg.inv(scan.affine) @ grid.affine
    voxels: NDArray[Any] = scan.voxels
    onto, found, lowest = np.empty(grid.shape, dtype=np.float32), False, voxels.min()
    _, wide, high = grid.shape
    for first in range(0, grid.shape[0], BLOCK):
        slab = onto[first : first + BLOCK]
        index = np.ogrid[first : first + len(slab), 0:wide, 0:high]
        outside = np.zeros(slab.shape, dtype=bool)
        for row, size in zip(to_scan[:3], voxels.shape, strict=True):
            position = row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3]
            outside |= (position < -0.5) | (position > size - 0.5)
        corner = to_scan[:3, 3] + to_scan[:3, 0] * first
        affine_transform(
            voxels, to_scan[:3, :3], corner, slab.shape, output=slab, order=1, mode="nearest", prefilter=False
        )
        slab[outside] = lowest
        found |= not outside.all()
    if not found:
        raise DataError(
            "a further channel does not overlap the first one in space; check that both were taken of the same patient "
            "and exported with their positions."
        )
    return torch.from_numpy(onto)


def _weights(position: Tensor, inputs: Tensor, width: float) -> Tensor:
    """Weights `(outputs, inputs)` of a triangle of half-width `width` around each output's position."""
    weights = (1 - (position[:, None] - inputs[None]).abs() / width).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _span(blocks: Sequence[Block]) -> slice:
    """All inputs that the blocks of one axis need."""
    return slice(min(block.source.start for block in blocks), max(block.source.stop for block in blocks))


def _middle(blocks: Sequence[Block], part: Tensor) -> Tensor:
    """Blocks along the second of three axes; `part` starts at their span."""
    skipped, size = _span(blocks).start, max(block.out.stop for block in blocks)
    result = part.new_empty(part.shape[0], size, part.shape[2])
    for source, target in zip(part, result, strict=True):
        for block in blocks:
            rows = source[block.source.start - skipped : block.source.stop - skipped]
            torch.mm(block.weights, rows, out=target[block.out])
    return result


def _last(blocks: Sequence[Block], part: Tensor) -> Tensor:
    """Blocks along the last of three axes; `part` starts at their span."""
    skipped, size = _span(blocks).start, max(block.out.stop for block in blocks)
    result = part.new_empty(*part.shape[:2], size)
    source, target = part.view(-1, part.shape[2]), result.view(-1, size)
    for block in blocks:
        columns = source[:, block.source.start - skipped : block.source.stop - skipped]
        torch.mm(columns, block.weights.T, out=target[:, block.out])
    return result
