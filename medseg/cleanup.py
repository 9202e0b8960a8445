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
from medseg.geometry import SUPERIOR, bounding_box, connected_lesions, spacing_mm, voxel_volume_ml, world_axes

Label = NDArray[np.uint8]
Affine = NDArray[np.float64]
Box = tuple[slice, ...]


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
        pieces = connected_lesions(_is_one_of(label[box], self.values))
        return _changed(label, box, pieces > 1, 0)


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
        region = _is_one_of(label[box], self.values)
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
        outside = judged & ~_in_box(self._near_organ(label, affine), box)
        pieces = connected_lesions(judged)
        volume, lost = np.bincount(pieces.ravel()), np.bincount(pieces[outside], minlength=int(pieces.max()) + 1)
        whole = volume - lost >= self.whole_from * volume
        return _changed(label, box, outside & ~whole[pieces], self.becomes)

    def _near_organ(self, label: Label, affine: Affine) -> tuple[Box, NDArray[np.bool_]] | None:
        """A box, and where in it the dilated organ is; None if there is no organ."""
        box = _box_of(label, self.inside)
        if box is None:
            return None
        edges_mm = spacing_mm(affine)
        reach = [int(np.ceil(self.margin_mm / edge)) for edge in edges_mm]
        grown = tuple(
            slice(max(0, side.start - n), min(size, side.stop + n))
            for side, n, size in zip(box, reach, label.shape, strict=True)
        )
        organ = fill_voids.fill(np.asfortranarray(_is_one_of(label[grown], self.inside)))
        return grown, edt.edt(~organ, anisotropy=edges_mm, black_border=False) <= self.margin_mm + 1e-4


def changes(before: Label, after: Label, affine: Affine, labels: Mapping[str, int]) -> tuple[str, ...]:
    """What clean-up did, a phrase a label: "tumor: 2 pieces, 0.4 mL removed", "liver: 1.2 mL added".

    Pieces are counted in what was removed of a label.

    Args:
        before: label map `(X, Y, Z)`.
        after: the same after the rules.
        affine: of both.
        labels: name -> value; background is left out.
    """
    box = bounding_box(before != after)
    if box is None:
        return ()
    old, new, voxel_ml, phrases = before[box], after[box], voxel_volume_ml(affine), []
    for name, value in labels.items():
        lost, gained = (old == value) & (new != value), (new == value) & (old != value)
        if value and lost.any():
            pieces = int(connected_lesions(lost).max())
            counted = "1 piece" if pieces == 1 else f"{pieces} pieces"
            phrases.append(f"{name}: {counted}, {np.count_nonzero(lost) * voxel_ml:.1f} mL removed")
        if value and gained.any():
            phrases.append(f"{name}: {np.count_nonzero(gained) * voxel_ml:.1f} mL added")
    return tuple(phrases)


def _without_small(label: Label, value: int, below_voxels: float, becomes: int) -> Label:
    box = _box_of(label, (value,))
    if box is None:
        return label
    judged = label[box] == value
    pieces = connected_lesions(judged)
    small = np.bincount(pieces.ravel()) < below_voxels
    small[0] = False
    return _changed(label, box, small[pieces], becomes)


def _is_one_of(label: Label, values: Sequence[int]) -> NDArray[np.bool_]:
    """Where `label` has one of the values; a table look-up, ten times as fast as `np.isin`."""
    table = np.zeros(256, dtype=bool)
    table[list(values)] = True
    return table[label]


def _box_of(label: Label, values: Sequence[int]) -> Box | None:
    """Smallest box around the values; None if the label has none of them."""
    outer = bounding_box(label)
    if outer is None:
        return None
    inner = bounding_box(_is_one_of(label[outer], values))
    if inner is None:
        return None
    return tuple(
        slice(first.start + side.start, first.start + side.stop) for first, side in zip(outer, inner, strict=True)
    )


def _in_box(found: tuple[Box, NDArray[np.bool_]] | None, box: Box) -> NDArray[np.bool_]:
    """A mask that is known in one box, seen in another; False where it is not known."""
    seen = np.zeros([side.stop - side.start for side in box], dtype=bool)
    if found is None:
        return seen
    known, mask = found
    both = [
        slice(max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop)))
        for a, b in zip(known, box, strict=True)
    ]
    there = tuple(slice(s.start - a.start, s.stop - a.start) for s, a in zip(both, known, strict=True))
    here = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(both, box, strict=True))
    seen[here] = mask[there]
    return seen


def _pieces_of(mask: NDArray[np.bool_], *, at_most: float) -> NDArray[np.bool_]:
    """The pieces of up to `at_most` voxels; joined through faces alone, as holes are."""
    numbers = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=6 if mask.ndim == 3 else 4)
    small = np.bincount(numbers.ravel()) <= at_most
    small[0] = False
    return small[numbers]


def _changed(label: Label, box: Box, where: NDArray[np.bool_], value: int) -> Label:
    """A copy of `label` with `value` at `where` in `box`; `label` itself if that is nowhere."""
    if not where.any():
        return label
    changed = label.copy(order="K")
    changed[box][where] = value
    return changed
