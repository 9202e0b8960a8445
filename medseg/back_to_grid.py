"""From logits on the working grid to labels or probabilities on the scan's own grid, a small tile at a time.

Interpolation is linear, so an interpolated logit is a weighted mean of those at the corners of its cell. A class that
is the largest at every corner of a tile's cells is then the largest in all of the tile, and nothing needs to be
interpolated there; nor does a class that stays below a mean of others at every corner. Labels are those of
interpolating every class everywhere.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.data_half import painted_values
from medseg.errors import ConfigError
from medseg.grid import Grid, turned
from medseg.probability_file import ProbabilityFile
from medseg.writing import aside

Slabs = Iterable[tuple[slice, Tensor]]  # working voxels along one axis and their logits `(C, *slab)`, in order
Labels = NDArray[np.uint8]  # uint16 where there are more than 256 values

TILE_VOXELS = 40  # of the scan, along each edge: 256 KB of float32 a channel; 32 to 48 take nearly the same time
MOST_KEPT = 32  # interpolated channels of a tile
LONGEST_TILE = 48  # working voxels along an edge; longer ones are rarely of one class


@dataclass(frozen=True)
class Tile:
    """A box of working cells, and the scan voxels that lie in them.

    Attributes:
        logits: `(C, r, a, s)` at the cells' corners, float32.
        weights: for each axis `(scan voxels, corners)`, of linear interpolation.
        where: the scan voxels, axes in working order.
        asked: channels that were interpolated, the first few with their values, for who asks again; None to keep none.
    """

    logits: Tensor
    weights: tuple[Tensor, Tensor, Tensor]
    where: tuple[slice, slice, slice]
    asked: dict[int, Tensor | None] | None = None

    def channel(self, index: int) -> Tensor:
        """One channel at the tile's scan voxels; not to be changed in place."""
        if self.asked is None:
            return self.interpolated(self.logits[index])
        found = self.asked.get(index)
        if found is None:
            found = self.interpolated(self.logits[index])
            self.asked[index] = found if len(self.asked) < MOST_KEPT else None
        return found

    def within(self, box: tuple[slice, slice, slice]) -> "Tile":
        """The part of the tile in a box of its scan voxels."""
        rows = [weights[side] for weights, side in zip(self.weights, box, strict=True)]
        needed = [each.any(dim=0).nonzero()[:, 0] for each in rows]
        corners = [slice(int(columns[0]), int(columns[-1]) + 1) for columns in needed]
        first, second, third = (each[:, side] for each, side in zip(rows, corners, strict=True))
        where = [
            slice(own.start + side.start, own.start + side.stop) for own, side in zip(self.where, box, strict=True)
        ]
        asked = {index: None if found is None else found[box] for index, found in (self.asked or {}).items()}
        logits = self.logits[(slice(None), *corners)]
        return Tile(logits, (first, second, third), (where[0], where[1], where[2]), asked)

    def interpolated(self, corners: Tensor) -> Tensor:
        """Values `(r, a, s)` at the cells' corners -> those at the tile's scan voxels."""
        first, second, third = self.weights
        rows = torch.matmul(second, corners.reshape(-1, len(third[0])).matmul(third.T).view(*corners.shape[:2], -1))
        return first.matmul(rows.flatten(1)).view(len(first), len(second), len(third))


Watch = Callable[[Tile, Tensor | int], None]  # is told a tile and its labels, or the one they all have


@dataclass(frozen=True)
class LabelMaker:
    """Makes labels of logits, at once or while the slabs of a sliding window arrive.

    Attributes:
        values: of regions with a sigmoid each, the label value that each paints; None for a softmax over classes.
        temperature: logits are divided by it before they become probabilities; labels do not depend on it.
    """

    values: tuple[int, ...] | None = None
    temperature: float = 1.0

    def __call__(self, logits: Tensor, grid: Grid) -> Labels:
        """Logits `(C, R, A, S)` on `grid` -> labels `(X, Y, Z)` on the scan's grid."""
        return self.from_slabs([(slice(0, logits.shape[1]), logits)], grid)

    def of_windows(self, logits: Tensor) -> Tensor:
        """Logits `(N, C, *spatial)` -> labels `(N, *spatial)` on their own grid, on the device they are on."""
        if self.values is None:
            return winning_class(logits.unbind(dim=1))
        label = torch.zeros_like(logits[:, 0], dtype=_smallest_type(self.values))
        for channel, value in zip(logits.unbind(dim=1), self.values, strict=True):
            label.masked_fill_(channel > 0, value)
        return label

    def from_slabs(
        self,
        slabs: Slabs,
        grid: Grid,
        *,
        axis: int = 0,
        probabilities: Path | None = None,
        watch: Watch | None = None,
    ) -> Labels:
        """Labels `(X, Y, Z)` on the scan's own grid, stored with x fastest, as NIfTI has it.

        Args:
            slabs: of logits on `grid`, in order along `axis` and without gaps; each may be reused after the next.
            grid: where the logits lie, and the scan's own grid.
            axis: working axis the slabs follow each other along.
            probabilities: a `.nii` file to write, `(X, Y, Z, C)`; see `ProbabilityFile`.
            watch: is told each tile and its labels, such as a `medseg.confidence.Confidence`.

        Returns:
            uint8, or uint16 where there are more label values than that holds; 0 outside the grid's box.

        Raises:
            ConfigError: if the values of regions are not one a channel.
        """
        return self.from_tiles(tiles(slabs, grid, axis=axis), grid, probabilities=probabilities, watch=watch)

    def from_tiles(
        self, tiles: Iterable[Tile], grid: Grid, *, probabilities: Path | None = None, watch: Watch | None = None
    ) -> Labels:
        """As `from_slabs`, of tiles that together hold every scan voxel the grid's box decides about."""
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # bfloat16 would round the logits
            if probabilities is None:
                return self._labels(tiles, grid, None, watch)
            with aside(probabilities) as path:
                return self._labels(tiles, grid, path, watch)

    def _labels(self, tiles: Iterable[Tile], grid: Grid, path: Path | None, watch: Watch | None) -> Labels:
        remaining = iter(tiles)
        first = next(remaining, None)
        if first is None:
            raise ValueError("there is no slab of logits; give those of the whole grid")
        channels = len(first.logits)
        voxel_type: Any = np.uint8 if self._highest_value(channels) < 256 else np.uint16
        label: Labels = np.zeros(grid.scan_shape, voxel_type, order="F")
        stored = None if path is None else ProbabilityFile(path, channels, grid, self.temperature)
        try:
            if stored is not None and self.values is None:
                stored.fill_outside()
            self._fill(turned(label, grid), chain([first], remaining), stored, watch)
        finally:
            if stored is not None:
                stored.close()
        return label

    def _fill(self, seen: Labels, tiles: Iterable[Tile], stored: ProbabilityFile | None, watch: Watch | None) -> None:
        """Labels into `seen`, axes in working order; probabilities into `stored`."""
        for tile in tiles:
            if watch is not None:
                tile = replace(tile, asked={})
            found = winner(tile) if self.values is None else painted(tile, self.values)
            if isinstance(found, Tensor):
                seen[tile.where] = found.numpy()
            elif found:
                seen[tile.where] = found
            if watch is not None:
                watch(tile, found)
            if stored is not None:
                stored.write(tile.where, self._probabilities(tile))

    def _highest_value(self, channels: int) -> int:
        if self.values is None:
            return channels - 1
        if len(self.values) != channels:
            raise ConfigError(
                f"{channels} region channels for {len(self.values)} label values; give one a channel, in order"
            )
        return max(self.values)

    def _probabilities(self, tile: Tile) -> NDArray[np.float32]:
        logits = torch.stack([tile.channel(index) for index in range(len(tile.logits))]).div_(self.temperature)
        return (logits.softmax(dim=0) if self.values is None else logits.sigmoid()).numpy()


def logits_to_label(logits: Tensor, grid: Grid) -> Labels:
    """Logits on the working grid -> the winning class on the scan's own grid.

    Args:
        logits: `(C, R, A, S)` on `grid`, interpolated linearly; ties go to the lower class.
        grid: where the logits lie, and the scan's own grid.

    Returns:
        Labels `(X, Y, Z)` on the scan's grid; 0 outside the grid's box.
    """
    return LabelMaker()(logits, grid)


def region_logits_to_label(logits: Tensor, grid: Grid, values: Sequence[int]) -> Labels:
    """Logits of one sigmoid a region, on the working grid -> a label on the scan's own grid.

    Each region of probability above 0.5, after linear interpolation of its logits, is painted over those before it.

    Args:
        logits: `(R, R, A, S)`, one channel a region, on `grid`.
        grid: where the logits lie, and the scan's own grid.
        values: the label value of each region, as `painted_values` gives them.

    Returns:
        Labels `(X, Y, Z)` on the scan's grid; 0 where no region is.

    Raises:
        ConfigError: if the values are not one a channel.
    """
    return LabelMaker(tuple(values))(logits, grid)


def label_maker(activation: str, regions: Mapping[str, Sequence[int]], *, temperature: float = 1.0) -> LabelMaker:
    """What makes labels of a network's logits.

    Args:
        activation: the recipe's: `"softmax"`, a channel a class, or `"sigmoid"`, a channel a region.
        regions: name -> label values, larger regions before those inside them.
        temperature: of probabilities.

    Raises:
        ConfigError: if there is no such activation, or the regions cannot be painted one over the other.
    """
    if activation == "softmax":
        return LabelMaker(temperature=temperature)
    if activation == "sigmoid":
        return LabelMaker(tuple(painted_values(regions)), temperature)
    raise ConfigError(f"activation: is {activation!r}; give 'softmax' or 'sigmoid'")


def winner(tile: Tile) -> Tensor | int:
    """Class of the largest interpolated logit at each scan voxel, ties to the lower class; an int if it is one class.

    Only classes that can win are interpolated.
    """
    classes = tile.logits.max(dim=0).indices
    present = torch.bincount(classes.flatten()).nonzero()[:, 0].tolist()
    if len(present) == 1:
        return int(present[0])
    bar = tile.logits[present].mean(dim=0)  # no interpolated logit below it everywhere is above all of `present`
    candidates = (tile.logits >= bar).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    return torch.tensor(candidates, dtype=_smallest_type(candidates))[
        winning_class(tile.channel(index) for index in candidates).long()
    ]


def painted(tile: Tile, values: Sequence[int]) -> Tensor | int:
    """Value of the last region whose interpolated logit is above 0 at each scan voxel; an int if it is the same in all.

    Only regions that begin or end in the tile are interpolated.
    """
    inside = (tile.logits > 0).flatten(1)
    everywhere, somewhere = inside.all(dim=1).tolist(), inside.any(dim=1).tolist()
    label: Tensor | int = 0
    for index, value in enumerate(values):
        if everywhere[index]:
            label = value
        elif somewhere[index]:
            if isinstance(label, int):
                label = torch.full([len(rows) for rows in tile.weights], label, dtype=_smallest_type(values))
            label.masked_fill_(tile.channel(index) > 0, value)
    return label


def winning_class(channels: Iterable[Tensor]) -> Tensor:
    """Index of the largest channel at each voxel; ties go to the earlier channel.

    Channels `(*spatial)` are taken one after the other, which is many times faster than `argmax` over a stack.
    """
    remaining = iter(channels)
    best = next(remaining)
    index_of_best = torch.zeros_like(best, dtype=torch.uint8)
    for index, channel in enumerate(remaining, start=1):
        if index == 256:
            index_of_best = index_of_best.int()
        index_of_best.masked_fill_(channel > best, index)
        best = torch.maximum(best, channel)
    return index_of_best


def tiles(
    slabs: Slabs, grid: Grid, *, axis: int = 0, across: int | None = None, within: slice | None = None
) -> Iterator[Tile]:
    """Every scan voxel that the grid's box decides about, in tiles, as soon as the slabs reach it.

    Args:
        slabs: of logits on `grid`, in order along `axis`.
        grid: where the logits lie, and the scan's own grid.
        axis: working axis the slabs follow each other along.
        across: another one, along which the slabs are a strip; the scan voxels are then those between its ends.
        within: the strip's working voxels along `across`; the next strip begins with the last of this one.
    """
    axes = [_Axis(*each) for each in zip(grid.shape, grid.covered, grid.scale, grid.start, strict=True)]
    origin = [0, 0, 0]
    parts = [own.parts(slice(0, own.size)) for own in axes]
    if across is not None and within is not None:
        parts[across], origin[across] = axes[across].parts(within), within.start
    kept: Tensor | None = None  # the last plane of the slab before: a cell begins there
    for side, slab in slabs:
        logits = slab.detach().float().cpu()
        origin[axis] = side.start
        parts[axis] = axes[axis].parts(slice(side.start if kept is None else side.start - 1, side.stop))
        for boxes in product(*parts):
            corners = [slice(max(box[0].start - n, 0), box[0].stop - n) for box, n in zip(boxes, origin, strict=True)]
            tile = logits[(slice(None), *corners)]
            if kept is not None and boxes[axis][0].start < side.start:
                corners[axis] = slice(None)
                tile = torch.cat([kept[(slice(None), *corners)], tile], dim=axis + 1)
            first, second, third = (own.weights[box[2], box[0]] for own, box in zip(axes, boxes, strict=True))
            yield Tile(tile, (first, second, third), (boxes[0][1], boxes[1][1], boxes[2][1]))
        kept = logits.narrow(axis + 1, logits.shape[axis + 1] - 1, 1).clone()


class _Axis:
    """One axis of a grid: where its scan voxels lie between the working voxels."""

    def __init__(self, size: int, covered: slice, scale: float, start: int) -> None:
        self.size, self.first = size, covered.start
        scan_voxels = np.arange(covered.start, covered.stop)
        self.position = (scan_voxels / scale - start).clip(0, size - 1)
        distance = torch.from_numpy(self.position)[:, None] - torch.arange(size, dtype=torch.float64)
        self.weights = (1 - distance.abs()).clamp_(min=0).float()
        self.length = max(1, min(LONGEST_TILE, round(TILE_VOXELS / scale)))

    def parts(self, known: slice) -> list[tuple[slice, slice, slice]]:
        """Working voxels, scan voxels of the whole field, and rows of `weights` of each tile within known voxels.

        A tile ends with the voxel that the next one begins with; scan voxels there belong to the next, the very last
        ones to the last.
        """
        last = known.stop - 1
        edges = [*range(known.start, last, self.length), last]
        if len(edges) == 1 and self.size > 1:
            return []  # one plane: no cell is whole yet
        edges = edges if len(edges) > 1 else [0, 0]
        bounds = np.searchsorted(self.position, edges, side="left")
        if known.stop == self.size:
            bounds[-1] = len(self.position)
        return [
            (slice(low, high + 1), slice(self.first + begin, self.first + end), slice(begin, end))
            for (low, high), (begin, end) in zip(pairwise(edges), pairwise(bounds.tolist()), strict=True)
            if end > begin
        ]


def _smallest_type(values: Iterable[int]) -> torch.dtype:
    return torch.uint8 if max(values) < 256 else torch.int32  # torch cannot index by uint16
