"""Clean-up rules that a recipe may list: what a label map on the scan's own grid must look like, in mm and mL.

Every rule works inside the bounding box of what it judges, so its cost follows the organ and not the scan. Pieces are
joined through faces, edges and corners.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import cc3d
import edt
import fill_voids
import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError
from medseg.geometry import (
    SUPERIOR,
    Box,
    bounding_box,
    connected_lesions,
    connected_pieces,
    spacing_mm,
    voxel_volume_ml,
    voxels_of_pieces,
    world_axes,
)
from medseg.regions import is_one_of

Label = NDArray[np.uint8]
Affine = NDArray[np.float64]


class CleanupRule(Protocol):
    """Changes a label map that is on the scan's own grid."""

    def __call__(self, label: Label, affine: Affine) -> Label:
        """Label map `(X, Y, Z)` and its affine -> label map of the same shape; the input stays as it is."""


class KeepLargest:
    """Keep only the largest connected piece of a region; the other pieces become background.

    Args:
        values: label values that make up the region, e.g. `[1, 2]` for the liver with its tumors.
    """

    def __init__(self, values: Sequence[int]) -> None:
        self.values = tuple(values)

    def __call__(self, label: Label, affine: Affine) -> Label:
        """Label map `(X, Y, Z)` -> label map of the same shape."""
        box = _box_of(label, self.values)
        if box is None:
            return label
        pieces, count = connected_pieces(np.ascontiguousarray(is_one_of(label[box], self.values)))  # see there
        if count < 2:
            return label
        largest = 1 + int(voxels_of_pieces(pieces, count).argmax())
        return _changed(label, box, (pieces != 0) & (pieces != largest), 0)


class RemoveSmall:
    """Give connected pieces of one label value that are smaller than a volume another value.

    Args:
        value: the label value whose pieces are judged.
        below_ml: pieces of less than this volume are removed.
        becomes: the value they take, e.g. the liver's for a tumor of a few voxels.
    """

    def __init__(self, value: int, below_ml: float, *, becomes: int = 0) -> None:
        self.value, self.below_ml, self.becomes = value, below_ml, becomes

    def __call__(self, label: Label, affine: Affine) -> Label:
        """Label map `(X, Y, Z)` -> label map of the same shape."""
        return _without_small(label, self.value, self.below_ml / voxel_volume_ml(affine), self.becomes)


class RemoveSmallArea:
    """As `RemoveSmall` for 2D images, which have no mL.

    Args:
        value: the label value whose pieces are judged.
        below_px: pieces of less than this many pixels are removed.
        becomes: the value they take.
    """

    def __init__(self, value: int, below_px: int, *, becomes: int = 0) -> None:
        self.value, self.below_px, self.becomes = value, below_px, becomes

    def __call__(self, label: Label, affine: Affine) -> Label:
        """Label map `(X, Y, 1)` -> label map of the same shape."""
        return _without_small(label, self.value, self.below_px, self.becomes)


class FillHoles:
    """Fill background that a region encloses. Other structures inside the region stay.

    Args:
        values: label values that make up the region, e.g. `[1, 2]` for the liver with its tumors.
        becomes: the value that holes take; the first of `values` if None.
        up_to_ml: larger holes stay (a cyst, a resection); no limit if None.
        by_slice: close axial slices one by one, so that a hole open above and below is filled too; `up_to_ml` then
            holds for the part of a hole in one slice.

    Raises:
        ConfigError: if there are no values, or the limit is no volume.
    """

    def __init__(
        self,
        values: Sequence[int],
        *,
        becomes: int | None = None,
        up_to_ml: float | None = None,
        by_slice: bool = False,
    ) -> None:
        if not values:
            raise ConfigError("FillHoles: values is empty; name the label values of a region, such as @regions::liver")
        if up_to_ml is not None and not up_to_ml > 0:
            raise ConfigError(f"FillHoles: up_to_ml is {up_to_ml}; give a volume in mL, or null for no limit")
        self.values, self.becomes = tuple(values), values[0] if becomes is None else becomes
        self.up_to_ml, self.by_slice = up_to_ml, by_slice

    def __call__(self, label: Label, affine: Affine) -> Label:
        """Label map `(X, Y, Z)` -> label map of the same shape."""
        box = _box_of(label, self.values)
        if box is None:
            return label
        region = is_one_of(label[box], self.values)
        axial = [axis for axis, _ in world_axes(affine)].index(SUPERIOR)
        planes = np.moveaxis(region, axial, 0) if self.by_slice else region[None]
        filled = np.stack([fill_voids.fill(np.asfortranarray(plane)) for plane in planes])
        holes = np.moveaxis(filled, 0, axial) if self.by_slice else filled[0]
        holes = holes & (label[box] == 0)
        if self.up_to_ml is not None:
            limit = self.up_to_ml / voxel_volume_ml(affine)
            apart = np.moveaxis(holes, axial, 0) if self.by_slice else holes[None]
            for plane in apart:
                plane &= _pieces_of(plane, at_most=limit)
        return _changed(label, box, holes, self.becomes)


class KeepInside:
    """Keep a structure only inside an organ dilated by a margin, e.g. tumors inside the liver.

    A connected piece that lies inside by half of its volume stays whole, so that a tumor growing out of the organ is
    not cut; of any other piece only what is inside stays. Holes of the organ count as inside, and so does a tumor
    that it surrounds. Distances are exact, between voxel centers, for voxels of any edge lengths.

    Args:
        value: the label value that is judged.
        inside: label values of the organ without `value`, e.g. `[1]`.
        margin_mm: how far outside of the organ still counts as inside.
        becomes: the value that the rest takes.
        whole_from: share of a piece's volume that must be inside for the piece to stay whole; above 1 for never.

    Raises:
        ConfigError: if the organ has no value, or has `value` among its own, or the margin is negative.
    """

    def __init__(
        self, value: int, inside: Sequence[int], margin_mm: float, *, becomes: int = 0, whole_from: float = 0.5
    ) -> None:
        if not inside or value in inside:
            raise ConfigError(
                f"KeepInside: inside is {list(inside)} for value {value}; give the organ's other values, such as [1]"
            )
        if not margin_mm >= 0:
            raise ConfigError(f"KeepInside: margin_mm is {margin_mm}; give 0 or more mm")
        self.value, self.inside, self.margin_mm = value, tuple(inside), margin_mm
        self.becomes, self.whole_from = becomes, whole_from

    def __call__(self, label: Label, affine: Affine) -> Label:
        """Label map `(X, Y, Z)` -> label map of the same shape."""
        box = _box_of(label, (self.value,))
        if box is None:
            return label
        judged = label[box] == self.value
        outside = judged & ~self._near_organ(label, affine, box, judged)
        if not outside.any():
            return label
        pieces = connected_lesions(judged)
        volume, lost = np.bincount(pieces.ravel()), np.bincount(pieces[outside], minlength=int(pieces.max()) + 1)
        whole = volume - lost >= self.whole_from * volume
        return _changed(label, box, outside & ~whole[pieces], self.becomes)

    def _near_organ(self, label: Label, affine: Affine, box: Box, judged: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Where in a box the organ is, and, of what is judged there, what it is near to."""
        around = _box_of(label, self.inside)
        near = np.zeros(judged.shape, dtype=bool)
        if around is None:
            return near
        organ = fill_voids.fill(np.asfortranarray(is_one_of(label[around], self.inside)))
        if (shared := _meet(around, box)) is not None:
            near[_within(shared, box)] = organ[_within(shared, around)]
        left = bounding_box(judged & ~near)  # most tumors are inside, and no distance is asked for
        edges_mm = spacing_mm(affine)
        reach = [int(np.ceil(self.margin_mm / edge)) for edge in edges_mm]
        both = None if left is None else _meet(_grown(around, reach, label.shape), _shifted(left, box))
        if both is None:
            return near
        known = _meet(_grown(both, reach, label.shape), around) or around  # organ farther away than that does not count
        sought = _hull(both, known)
        there = np.zeros([side.stop - side.start for side in sought], dtype=bool, order="F")
        there[_within(known, sought)] = organ[_within(known, around)]
        distance = edt.edt(~there, anisotropy=edges_mm, black_border=False)[_within(both, sought)]
        near[_within(both, box)] |= distance <= self.margin_mm + 1e-4
        return near


def changes(before: Label, after: Label, affine: Affine, labels: Mapping[str, int]) -> tuple[str, ...]:
    """What clean-up did, a phrase a label: "tumor: 2 pieces, 0.4 mL removed", "liver: 1.2 mL added".

    Pieces are counted in what was removed of a label.

    Args:
        before: label map `(X, Y, Z)`.
        after: the same after the rules.
        affine: of both.
        labels: name -> value; background is left out.
    """
    if after is before:
        return ()
    changed = before != after
    box = bounding_box(changed)
    if box is None:
        return ()
    where = _places(changed[box])
    old, new, voxel_ml, phrases = before[box][where], after[box][where], voxel_volume_ml(affine), []
    for name, value in labels.items():
        lost, gained = np.flatnonzero(old == value), np.count_nonzero(new == value)
        if value and len(lost):
            pieces = _count_pieces(tuple(axis[lost] for axis in where))
            counted = "1 piece" if pieces == 1 else f"{pieces} pieces"
            phrases.append(f"{name}: {counted}, {len(lost) * voxel_ml:.1f} mL removed")
        if value and gained:
            phrases.append(f"{name}: {gained * voxel_ml:.1f} mL added")
    return tuple(phrases)


def _places(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
    """Indexes of the voxels of a mask along each axis, in the order in which they lie in memory."""
    if abs(mask.strides[0]) < abs(mask.strides[-1]):
        return np.nonzero(mask.T)[::-1]
    return np.nonzero(mask)


def _count_pieces(places: tuple[NDArray[np.intp], ...]) -> int:
    """Connected pieces of the voxels at some places."""
    low = [axis.min() for axis in places]
    mask = np.zeros([axis.max() - first + 1 for axis, first in zip(places, low, strict=True)], dtype=bool)
    mask[tuple(axis - first for axis, first in zip(places, low, strict=True))] = True
    return connected_pieces(mask)[1]


def _without_small(label: Label, value: int, below_voxels: float, becomes: int) -> Label:
    box = _box_of(label, (value,))
    if box is None:
        return label
    pieces, count = connected_pieces(label[box] == value)
    small = np.concatenate([[False], voxels_of_pieces(pieces, count) < below_voxels])
    return _changed(label, box, small[pieces], becomes) if small.any() else label


def _box_of(label: Label, values: Sequence[int]) -> Box | None:
    """Smallest box around the values; None if the label has none of them."""
    outer = bounding_box(label)
    if outer is None:
        return None
    inner = bounding_box(is_one_of(label[outer], values))
    if inner is None:
        return None
    return _shifted(inner, outer)


def _grown(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    sides = zip(box, margin, shape, strict=True)
    return tuple(slice(max(0, side.start - n), min(size, side.stop + n)) for side, n, size in sides)


def _meet(one: Box, other: Box) -> Box | None:
    """What two boxes share; None if that is nothing."""
    both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    return tuple(both) if all(side.start < side.stop for side in both) else None


def _hull(one: Box, other: Box) -> Box:
    """Smallest box that holds both."""
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _shifted(box: Box, outer: Box) -> Box:
    """A box inside another as a box of the grid."""
    return tuple(slice(o.start + side.start, o.start + side.stop) for side, o in zip(box, outer, strict=True))


def _within(box: Box, outer: Box) -> Box:
    """A box as indexes of an array that fills another around it."""
    return tuple(slice(side.start - o.start, side.stop - o.start) for side, o in zip(box, outer, strict=True))


def _pieces_of(mask: NDArray[np.bool_], *, at_most: float) -> NDArray[np.bool_]:
    """The pieces of up to `at_most` voxels; joined through faces alone, as holes are."""
    numbers = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=6 if mask.ndim == 3 else 4)
    small = np.bincount(numbers.ravel()) <= at_most
    small[0] = False
    return small[numbers]


def _changed(label: Label, box: Box, where: NDArray[np.bool_], value: int) -> Label:
    """A copy of `label` with `value` at `where` in `box`; `label` itself if that is nowhere."""
    places = _places(where)
    if not len(places[0]):
        return label
    changed = label.copy(order="K")
    changed[box][places] = value
    return changed
