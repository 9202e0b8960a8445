"""Sums over all voxels, weighted by a Gaussian of their difference: pair by pair, or on a bilateral grid.

Both forms compute `sums(values)_i = sum_j k_ij values_j` with `k_ij = exp(-|f_i - f_j|^2 / 2)`, the voxel itself
counted, and know `own_i`, their `k_ii`. Both are symmetric. Features `f` are positions and intensities in units of
their kernel widths.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, prod

import torch
from torch import Tensor

from medseg.errors import ConfigError

PAIRS_AT_ONCE = 2**24  # 64 MB of float32 kernel
FEWEST_VOXELS_PER_CELL = 2.0  # below that a coarser grid saves nothing: one cell a voxel, which is exact
MOST_CELLS = 2**25  # 134 MB of float32 a class
REACH_WIDTHS = 6.0  # beyond, a Gaussian is below 2e-8 of its height, less than float32 can add to it
ROWS_AT_ONCE = 32  # of a band: fewer make small matrix products, more multiply zeros
SHORT_ROWS = 8  # batches of products with fewer columns are slower than copying the axis to the end


class PairSums:
    """Every pair of voxels, a chunk of rows at a time: exact, quadratic in the number of voxels.

    Args:
        features: `(D, *spatial)`, in kernel widths.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features.flatten(1).T.contiguous()
        self.own = torch.ones_like(features[0])

    def __call__(self, values: Tensor) -> Tensor:
        """`(C, *spatial)` -> the same shape."""
        flat = values.flatten(1)
        rows = max(1, PAIRS_AT_ONCE // len(self.features))
        # through matrix products, distances of close features would be lost in rounding
        precise = "donot_use_mm_for_euclid_dist"
        sums = [
            flat @ torch.exp(-0.5 * torch.cdist(self.features, chunk, compute_mode=precise).square())
            for chunk in torch.split(self.features, rows)
        ]
        return torch.cat(sums, dim=1).view_as(values)


class GridSums:
    """A bilateral grid: values are spread linearly onto coarse cells in space and intensity, blurred, and read back.

    Spreading and reading widen a kernel by `cell**2 / 3`, which the blur is narrowed by; the error falls with the
    square of `resolution`. Where a kernel is narrower than a few voxels, an axis keeps one cell a voxel and is exact.
    Time hardly depends on the widths. Adding into cells is deterministic on a CPU only.

    Args:
        widths: kernel width along each axis, in voxels.
        intensities: `(K, *spatial)`, in kernel widths; K may be 0. Cells multiply with each channel.
        resolution: cells a kernel width, at least 1.

    Raises:
        ConfigError: if the grid would have more than 33 million cells.

    Reference:
        Chen, Paris and Durand, "Real-time edge-aware image processing with the bilateral grid", 2007; the narrowed
        blur is ours.
    """

    def __init__(self, widths: Sequence[float], intensities: Tensor, *, resolution: float = 2.0) -> None:
        size = intensities.shape[1:]
        axes = [
            _spatial_axis(n, width, resolution, shape=[-1 if other == axis else 1 for other in range(len(size))])
            for axis, (n, width) in enumerate(zip(size, widths, strict=True))
        ]
        self.axes = [*(_Axis(channel - channel.min(), 1.0, 1 / resolution) for channel in intensities), *axes]
        self.cells = [axis.cells for axis in self.axes]
        if prod(self.cells) > MOST_CELLS:
            raise ConfigError(
                f"the bilateral grid would have {' x '.join(map(str, self.cells))} cells, at most {MOST_CELLS} fit; "
                "set intensity and intensity_range in the image's unit (CT: about 25 and [-150, 250] HU), or use wider "
                "kernels"
            )
        self.coarse = any(axis.step for axis in self.axes)
        self.blurs = [axis.blur().to(intensities) for axis in self.axes]
        self.strides = [prod(self.cells[position + 1 :]) for position in range(len(self.cells))]
        below = [axis.below.to(intensities.device) * step for axis, step in zip(self.axes, self.strides, strict=True)]
        self.first_cell = sum(below[1:], start=below[0]).expand(size).flatten()
        self.above = [axis.above.to(intensities) for axis in self.axes]
        self.own = torch.ones(size, dtype=intensities.dtype, device=intensities.device)
        for above, blur in zip(self.above, self.blurs, strict=True):
            beside = blur[0, 1] if len(blur) > 1 else blur.new_zeros(())
            self.own = self.own * (
                (above.square() + (1 - above).square()) * blur[0, 0] + 2 * above * (1 - above) * beside
            )

    def __call__(self, values: Tensor) -> Tensor:
        """`(C, *spatial)` -> the same shape."""
        flat = values.flatten(1)
        grid = self._spread(flat) if self.coarse else flat
        grid = grid.view(-1, *self.cells)
        for axis, (blur, on_axis) in enumerate(zip(self.blurs, self.axes, strict=True), start=-len(self.blurs)):
            if len(blur) > 1:
                grid = along(blur, grid, axis, reach=on_axis.reach)
        grid = grid.flatten(1)
        return (self._read(grid) if self.coarse else grid).view_as(values)

    def _spread(self, flat: Tensor) -> Tensor:
        grid = flat.new_zeros(len(flat), prod(self.cells))
        for offset, share in self._corners():
            index = self.first_cell + offset
            for cells, channel in zip(grid, flat, strict=True):
                cells.index_add_(0, index, channel * share)  # one channel at a time: torch is many times faster so
        return grid

    def _read(self, grid: Tensor) -> Tensor:
        flat = grid.new_zeros(len(grid), len(self.first_cell))
        for offset, share in self._corners():
            index = self.first_cell + offset
            for cells, channel in zip(grid, flat, strict=True):
                channel.addcmul_(cells.index_select(0, index), share)
        return flat

    def _corners(self) -> Iterator[tuple[int, Tensor]]:
        """The cells around each voxel: how far behind its first one, and its share of the voxel `(voxels,)`."""
        for corner in product(*((0, 1) if axis.step else (0,) for axis in self.axes)):
            share = torch.ones_like(self.own)
            for side, above, axis in zip(corner, self.above, self.axes, strict=True):
                if axis.step:
                    share = share * (above if side else 1 - above)
            yield sum(side * stride for side, stride in zip(corner, self.strides, strict=True)), share.flatten()


class _Axis:
    """One axis of the grid: where voxels lie between its cells.

    Args:
        position: of the voxels, from 0, of any shape that broadcasts over the image.
        width: the kernel's, in the unit of `position`.
        step: distance of cells; 0 for voxels that are the cells.
    """

    def __init__(self, position: Tensor, width: float, step: float) -> None:
        self.width, self.step = width, step
        cell = position / step if step else position
        self.below = cell.floor().long()
        self.above = cell - self.below  # share of the upper cell
        self.cells = int(self.below.max()) + (2 if step else 1)
        self.variance = width**2 - step**2 / 3  # of the blur
        self.reach = ceil(REACH_WIDTHS * self.variance**0.5 / (step or 1.0))  # of the blur, in cells

    def blur(self) -> Tensor:
        """Weights `(cells, cells)` that, with linear spreading and reading, make a Gaussian of height 1; a band."""
        cell = torch.arange(self.cells, dtype=torch.float64)
        apart = cell[:, None] - cell
        gaussian = torch.exp(-0.5 * (apart * (self.step or 1.0)).square() / self.variance)
        return gaussian * (apart.abs() <= self.reach) * (self.width / self.variance**0.5)


def _spatial_axis(size: int, width: float, resolution: float, *, shape: Sequence[int]) -> _Axis:
    step = width / resolution
    position = torch.arange(size, dtype=torch.float64).view(*shape)
    saves = step >= FEWEST_VOXELS_PER_CELL and (size - 1) // step + 2 < size
    return _Axis(position, width, step if saves else 0.0)


def along(band: Tensor, values: Tensor, axis: int, *, reach: int) -> Tensor:
    """Multiply `band` `(n, n)`, zero farther than `reach` from its diagonal, along a negative `axis` of length n."""
    size, columns = len(band), prod(values.shape[axis:]) // len(band)
    grouped = values.reshape(-1, size, columns)
    short = columns < SHORT_ROWS
    if short:
        grouped = grouped.transpose(1, 2).reshape(-1, size)
    multiplied = torch.empty_like(grouped)
    for first in range(0, size, ROWS_AT_ONCE):
        here, near = slice(first, first + ROWS_AT_ONCE), slice(max(0, first - reach), first + ROWS_AT_ONCE + reach)
        rows = band[here, near]
        multiplied[:, here] = grouped[:, near] @ rows.T if short else rows @ grouped[:, near]
    if short:
        multiplied = multiplied.view(-1, columns, size).transpose(1, 2)
    return multiplied.reshape(values.shape)
