"""Where the values of a label map are, found in one pass, and its lesions, numbered once.

What comes after the network asks the same of a label map again and again: how many voxels a region has, where it
begins and ends, which voxels are its own. Only the first asking looks at the whole map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Box, bounding_box, numbered_by_size

Labels = NDArray[Any]  # whole numbers from 0


@dataclass(frozen=True)
class LabelFacts:
    """A label map, and what one pass over it tells of each of its values above 0.

    Attributes:
        label: the map `(X, Y, Z)`.
        counts: voxels of each value, `(values,)`; that of 0 is not told.
        first: of each value the lowest index along each axis, `(values, 3)`.
        stop: of each value one more than the highest.
    """

    label: Labels
    counts: NDArray[np.int64]
    first: NDArray[np.int64]
    stop: NDArray[np.int64]

    @classmethod
    def of(cls, label: "Labels | LabelFacts") -> "LabelFacts":
        """Facts of a label map; those that are known already stay."""
        if isinstance(label, LabelFacts):
            return label
        box = bounding_box(label)
        if box is None:
            return cls(label, np.zeros(1, np.int64), np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int64))
        inside = label[box]
        if inside.dtype.kind != "u":
            inside = inside.astype(np.uint32)
        if (highest := int(inside.max())) >= inside.size:  # cc3d wants more voxels than that
            inside = np.pad(inside, [(0, 0), (0, 0), (0, highest)])
        order = np.asfortranarray if abs(inside.strides[0]) < abs(inside.strides[-1]) else np.ascontiguousarray
        found = cc3d.statistics(order(inside), no_slice_conversion=True)
        counts = found["voxel_counts"].astype(np.int64)
        counts[0] = 0
        ends = found["bounding_boxes"].astype(np.int64)  # first and last index along each axis
        start = np.array([side.start for side in box])
        return cls(label, counts, ends[:, ::2] + start, ends[:, 1::2] + start + 1)

    def voxels(self, values: Sequence[int]) -> int:
        """How many voxels have one of the values."""
        return int(self.counts[self._present(values)].sum())

    def box(self, values: Sequence[int]) -> Box | None:
        """Smallest box around the voxels that have one of the values; None if there are none."""
        present = self._present(values)
        if not present:
            return None
        ends = zip(self.first[present].min(axis=0).tolist(), self.stop[present].max(axis=0).tolist(), strict=True)
        return tuple(slice(first, stop) for first, stop in ends)

    def mask(self, values: Sequence[int], box: Box) -> NDArray[np.bool_]:
        """Where in a box the map has one of the values."""
        return is_one_of(self.label[box], self._present(values))

    def _present(self, values: Sequence[int]) -> list[int]:
        return [value for value in values if value < len(self.counts) and self.counts[value]]


@dataclass(frozen=True)
class Lesions:
    """Connected lesions of a label map, numbered 1, 2, ..., largest first, inside the box that holds them all.

    Attributes:
        numbers: on the box's grid, 0 outside lesions.
        box: where they lie.
        shape: of the whole grid.
        sizes: voxels of each lesion.
        boxes: around each lesion, within `numbers`.
        centers: mean voxel index of each on the whole grid, `(lesions, 3)`.
    """

    numbers: NDArray[np.int32]
    box: Box
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    boxes: tuple[Box, ...]
    centers: NDArray[np.float64]

    @classmethod
    def of(cls, label: Labels | LabelFacts, values: Sequence[int]) -> "Lesions":
        """The connected pieces of what has one of the values; joined through faces, edges and corners.

        Equally large ones are numbered in the order of their first voxel.
        """
        facts = LabelFacts.of(label)
        box = facts.box(values)
        if box is None:
            nowhere = tuple(slice(0, 0) for _ in facts.label.shape)
            return cls(np.zeros((0, 0, 0), np.int32), nowhere, facts.label.shape, (), (), np.zeros((0, 3)))
        numbers, found = numbered_by_size(facts.mask(values, box))
        ends = found["bounding_boxes"].astype(int).tolist()
        boxes = tuple(
            tuple(slice(first, last + 1) for first, last in zip(each[::2], each[1::2], strict=True)) for each in ends
        )
        sizes = tuple(found["voxel_counts"].tolist())
        centers = found["centroids"] + [side.start for side in box]
        return cls(numbers, box, facts.label.shape, sizes, boxes, centers)

    def whole(self) -> NDArray[np.unsignedinteger]:
        """Lesion numbers on the whole grid, x fastest, in the smallest type that holds them."""
        kind = np.uint8 if len(self.sizes) < 256 else np.uint16 if len(self.sizes) < 65536 else np.uint32
        numbers: NDArray[np.unsignedinteger] = np.zeros(self.shape, kind, order="F")
        numbers[self.box] = self.numbers
        return numbers


def is_one_of(label: Labels, values: Sequence[int]) -> NDArray[np.bool_]:
    """Where `label` has one of the values; by comparing or by a table, many times as fast as `np.isin`.

    Args:
        label: of any shape; whole numbers from 0, or a mask, whose values are 0 and 1.
        values: from 0.
    """
    if len(values) == 0:
        return np.zeros(label.shape, dtype=bool)
    if len(values) == 1:
        return np.equal(label, values[0])
    if label.dtype.kind != "u" or label.dtype.itemsize > 2:
        return np.isin(label, values)
    table = np.zeros(np.iinfo(label.dtype).max + 1, dtype=bool)
    table[list(values)] = True
    return table[label]
