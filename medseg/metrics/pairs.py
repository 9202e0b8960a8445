"""A prediction and its reference made ready to be measured: one grid, one box, few classes, one table of counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Layout:
    """How the maps lie in space and in memory.

    Attributes:
        affine: a voxel's world position; `(4, 4)`, of a slice `(4, 3)`, of a 2D map `(3, 3)`; axes as given, without
            the one that was dropped.
        shape: of the maps, axes as given.
        dropped: axis of length 1 that was left out, so that a slice has a contour and not two flat sides.
        reversed: if the arrays in use have their axes the other way round, as NIfTI's order in memory asks for.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, ...]
    dropped: int | None
    reversed: bool

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def steps_mm(self) -> NDArray[np.float64]:
        """`(dims, dims)`: lengths and angles of the voxel's edges, as columns, in the order of the arrays in use."""
        steps = self.affine[:-1, :-1]
        if steps.shape[0] != steps.shape[1]:
            steps = np.linalg.qr(steps)[1]  # a slice in its own plane
        return steps[:, ::-1] if self.reversed else steps

    @property
    def voxel_size(self) -> float:
        """mm3 of a voxel, in 2D mm2."""
        return float(abs(np.linalg.det(self.steps_mm)))

    @property
    def diagonal_mm(self) -> float:
        """From corner to corner of the whole grid: no distance on it is longer."""
        extent = np.array(self.shape[::-1] if self.reversed else self.shape)
        return max(
            float(np.linalg.norm(self.steps_mm @ (extent * signs))) for signs in product((1, -1), repeat=self.dims)
        )

    def into_use(self, array: NDArray[Any]) -> NDArray[Any]:
        """A map as given -> the array to work on, a view."""
        array = array if self.dropped is None else array.take(0, axis=self.dropped)
        return array.T if self.reversed else array

    def as_given(self, array: NDArray[Any]) -> NDArray[Any]:
        """The axes of an array in use as they were given, a view."""
        return array.T if self.reversed else array


@dataclass(frozen=True)
class Pair:
    """Both maps within the box that holds all of both, as class numbers.

    Attributes:
        pred: `(*box)`; 0 for label value 0, 1 and up for the values in `values[1:]`, then one number for all other
            values, then one for ignored voxels.
        reference: the same.
        values: label values of the class numbers, 0 first.
        outside: voxels outside the box, 0 in both.
        corner: where the box starts, in the arrays in use.
        layout: of the maps.
    """

    pred: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    values: tuple[int, ...]
    outside: int
    corner: tuple[int, ...]
    layout: Layout

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Voxels by reference class (row) and predicted class, the last class being all other values."""
        width = len(self.values) + 2
        table = np.zeros(width * width, dtype=np.int64)
        for pred, reference in zip(self.pred, self.reference, strict=True):  # slab by slab: bincount widens to 64 bits
            table += np.bincount((reference.astype(np.intp) * width + pred).reshape(-1), minlength=table.size)
        counts = table.reshape(width, width)[:-1, :-1].copy()
        counts[0, 0] += self.outside
        return counts

    def masks(self, label_values: Iterable[int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Where the prediction and the reference have one of the values, on the box."""
        numbers = [self.values.index(value) for value in label_values]
        return _among(self.pred, numbers), _among(self.reference, numbers)

    def ignored(self) -> NDArray[np.bool_]:
        """Which voxels of the box are not judged."""
        return self.reference == len(self.values) + 1


def paired(
    pred: NDArray[Any],
    reference: NDArray[Any],
    affine_or_spacing: ArrayLike,
    regions: Mapping[str, Sequence[int]],
    *,
    ignore_label: int | None = None,
) -> Pair:
    """Check both maps and cut them to the box that holds what is not 0 in either.

    Args:
        pred: label map `(X, Y)`, `(X, Y, Z)` or `(X, Y, 1)`.
        reference: label map on the same grid.
        affine_or_spacing: `(4, 4)`, in 2D `(3, 3)`, voxel index -> mm; or voxel edge lengths.
        regions: name -> label values.
        ignore_label: reference value whose voxels are not judged.

    Raises:
        ValueError: if the maps are no label maps of one grid, or the affine does not fit them.
    """
    pred, reference = np.asarray(pred), np.asarray(reference)
    if pred.shape != reference.shape:
        raise ValueError(
            f"pred is {pred.shape} and reference {reference.shape}; bring the prediction to the reference's grid"
        )
    if pred.ndim not in (2, 3) or pred.size == 0:
        raise ValueError(f"the maps are {pred.shape}; give label maps (X, Y) or (X, Y, Z)")
    for name, array in (("pred", pred), ("reference", reference)):
        if array.dtype.kind not in "bui":
            raise ValueError(f"{name} has voxels of type {array.dtype}; give label values as integers")
    layout = _layout(pred, affine_or_spacing)
    values = (0, *sorted({int(value) for values in regions.values() for value in values} - {0}))
    if len(values) > 254:
        raise ValueError(f"the regions have {len(values)} label values; 254 can be told apart")
    pred, reference = layout.into_use(pred), layout.into_use(reference)
    zero_counts = ignore_label == 0 or any(0 in values for values in regions.values())
    box = tuple(slice(0, size) for size in pred.shape) if zero_counts else _box_of_both(pred, reference)
    inside = [np.ascontiguousarray(array[box]) for array in (pred, reference)]
    ignored = None if ignore_label is None else inside[1] == ignore_label
    return Pair(
        pred=_class_numbers(inside[0], values, ignored),
        reference=_class_numbers(inside[1], values, ignored),
        values=values,
        outside=pred.size - inside[0].size,
        corner=tuple(part.start for part in box),
        layout=layout,
    )


def _among(codes: NDArray[np.uint8], numbers: list[int]) -> NDArray[np.bool_]:
    """Where one of the numbers is; for few of them faster than a look-up."""
    found = np.zeros(codes.shape, dtype=bool)
    for number in numbers:
        found |= codes == number
    return found


def _layout(array: NDArray[Any], affine_or_spacing: ArrayLike) -> Layout:
    given = np.asarray(affine_or_spacing, dtype=np.float64)
    dims = array.ndim
    if given.shape not in ((dims,), (dims + 1, dims + 1)):
        raise ValueError(
            f"affine_or_spacing is {given.shape} for maps {array.shape}; give {dims} voxel edge lengths in mm or an "
            f"affine ({dims + 1}, {dims + 1})"
        )
    affine = np.diag([*given, 1.0]) if given.ndim == 1 else given
    if not np.isfinite(affine).all() or np.linalg.det(affine[:dims, :dims]) == 0:
        raise ValueError("affine_or_spacing has an axis without length; take it from the scan's header")
    single = [axis for axis in range(dims) if array.shape[axis] == 1]
    dropped = single[-1] if dims == 3 and single else None
    if dropped is not None:
        affine = np.delete(affine, dropped, axis=1)
        array = array.take(0, axis=dropped)
    return Layout(affine, array.shape, dropped, bool(array.flags.f_contiguous and not array.flags.c_contiguous))


def _box_of_both(pred: NDArray[Any], reference: NDArray[Any]) -> tuple[slice, ...]:
    """The smallest box around all that is not 0, in either; of one voxel if there is nothing."""
    occupied = [[_occupied(part) for part in _projections(array)] for array in (pred, reference)]
    box = []
    for one, other in zip(*occupied, strict=True):
        both = [*one, *other]
        box.append(slice(min(both), max(both) + 1) if both else slice(0, 1))
    return tuple(box)


def _projections(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Along each axis, the largest value of each layer; values as unsigned, so that only 0 is 0."""
    unsigned = array.view(np.dtype(f"u{array.dtype.itemsize}")) if array.dtype.kind in "bi" else array
    layers = np.array([layer.max() for layer in unsigned])  # in the order of memory: the one pass over the whole map
    found = np.flatnonzero(layers)
    inside = unsigned[found[0] : found[-1] + 1] if found.size else unsigned[:1]
    flat = inside.max(axis=0)
    return [layers, *(flat.max(axis=tuple(a for a in range(flat.ndim) if a != axis)) for axis in range(flat.ndim))]


def _occupied(layers: NDArray[Any]) -> list[int]:
    found = np.flatnonzero(layers)
    return [int(found[0]), int(found[-1])] if found.size else []


def _class_numbers(
    array: NDArray[Any], values: tuple[int, ...], ignored: NDArray[np.bool_] | None
) -> NDArray[np.uint8]:
    """Label values -> class numbers; see `Pair`."""
    array = array.view(np.uint8) if array.dtype.kind == "b" else array
    top = values[-1]
    if array.dtype.kind == "i":
        judged = array if ignored is None else array[~ignored]
        if judged.size and judged.min() < 0:
            raise ValueError(
                "a label map has negative values; classes are 0 and up, pass a negative ignore_label by name"
            )
        array = np.maximum(array, 0)
    table = np.full(max(top + 2, 256), len(values), dtype=np.uint8)
    table[list(values)] = np.arange(len(values))
    if array.dtype == np.uint8 and values == tuple(range(top + 1)) and ignored is None and array.max() <= top:
        return array  # label values are the class numbers
    codes = table[array if array.dtype == np.uint8 else np.minimum(array, top + 1)]
    if ignored is not None:
        codes[ignored] = len(values) + 1
    return codes
