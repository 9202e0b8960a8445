"""Grids and what is measured on them: spacing, volume, orientation, connected lesions, longest diameters.

Every affine is `(4, 4)`, voxel index to mm, world axes growing to the patient's right, anterior and superior (RAS).
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[slice, ...]
AXIS_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
SUPERIOR = 2
AT_ONCE = 2**19  # voxels
MOST_PAIRED = 600  # points whose distances are all computed sooner than their hull is found


def spacing_mm(affine: ArrayLike) -> tuple[float, float, float]:
    """Voxel edge lengths along the stored axes, in mm."""
    x, y, z = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return float(x), float(y), float(z)


def voxel_volume_ml(affine: ArrayLike) -> float:
    """Volume of one voxel in mL; from the determinant, so it holds for sheared grids too."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000


def world_axes(affine: ArrayLike) -> tuple[tuple[int, int], ...]:
    """For each stored axis the nearest world axis (0 right, 1 anterior, 2 superior) and the sign of growth along it.

    Reference:
        The rule of nibabel's `io_orientation`: nearest rotation to the affine, each world axis taken once.
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :3] / np.asarray(spacing_mm(affine))
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    axes = {}
    for stored in np.argsort(-np.abs(rotation).max(axis=0), kind="stable"):  # the clearest axis chooses first
        axis = int(np.argmax(np.abs(rotation[:, stored])))
        axes[int(stored)] = (axis, 1 if rotation[axis, stored] > 0 else -1)
        rotation[axis] = 0
    return tuple(axes[stored] for stored in range(3))


def orientation_code(affine: ArrayLike) -> str:
    """Where the stored axes point: "LPS" is first to the left, second to posterior, third to superior."""
    return "".join(AXIS_LETTERS[axis][sign > 0] for axis, sign in world_axes(affine))


def grid_difference(
    shape: Sequence[int],
    affine: ArrayLike,
    other_shape: Sequence[int],
    other_affine: ArrayLike,
    *,
    tolerance: float = 1e-3,
) -> str | None:
    """What differs between two grids, in a short phrase: the shape, else the affine; None if they are one grid.

    Args:
        shape: voxels along each axis.
        affine: the first grid's affine.
        other_shape: the second grid's shape.
        other_affine: the second grid's affine.
        tolerance: largest difference of an affine entry (mm, or mm a voxel) that still counts as equal.
    """
    if tuple(shape) != tuple(other_shape):
        return f"shape {tuple(map(int, shape))} against {tuple(map(int, other_shape))}"
    if np.allclose(affine, other_affine, rtol=0, atol=tolerance):
        return None
    largest = float(np.abs(np.subtract(affine, other_affine)).max())
    return f"{_describe(affine)} against {_describe(other_affine)} (affine entries up to {largest:.2g} apart)"


def connected_lesions(mask: NDArray[np.generic]) -> NDArray[np.int32]:
    """Number the connected lesions 1, 2, ..., largest first; joined through faces, edges and corners.

    Args:
        mask: `(X, Y)` or `(X, Y, Z)`; what is not zero is lesion.

    Returns:
        Numbers on the mask's grid, 0 outside lesions; equally large ones in the order of their first voxel.
    """
    numbers = np.zeros(mask.shape, dtype=np.int32)
    box = bounding_box(mask)
    if box is not None:
        numbers[box] = numbered_by_size(mask[box] != 0)[0]
    return numbers


def numbered_by_size(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], dict[str, NDArray[Any]]]:
    """Lesion numbers as of `connected_lesions`, of the whole array, and what is known of each lesion.

    Returns:
        Numbers on the mask's grid. Then, one row a lesion: `voxel_counts`, `bounding_boxes` (first and last index along
        the first axis, the second, ...) and `centroids` (mean index).
    """
    pieces, _ = connected_pieces(
        np.ascontiguousarray(mask)
    )  # so that ties are numbered alike whatever the memory order
    found = cc3d.statistics(pieces, no_slice_conversion=True)
    known = {name: found[name][1:] for name in ("voxel_counts", "bounding_boxes", "centroids")}
    by_size = np.argsort(-known["voxel_counts"].astype(np.int64), kind="stable")
    rank = np.zeros(len(by_size) + 1, dtype=np.int32)
    rank[1 + by_size] = np.arange(1, len(by_size) + 1)
    return rank[pieces], {name: values[by_size] for name, values in known.items()}


def connected_pieces(mask: NDArray[np.bool_]) -> tuple[NDArray[np.unsignedinteger], int]:
    """Number the connected pieces of a mask 1, 2, ... in the order of their first voxel in memory, and how many.

    They are joined through faces, edges and corners.
    """
    ordered = mask if mask.flags.forc else np.ascontiguousarray(mask)
    # as bytes: with booleans cc3d 4.1.1 numbers some 2D maps wrongly and fails on lines of voxels
    found: tuple[NDArray[np.unsignedinteger], int] = cc3d.connected_components(
        ordered.view(np.uint8), connectivity=26 if mask.ndim == 3 else 8, return_N=True
    )
    return found


def voxels_of_pieces(pieces: NDArray[np.unsignedinteger], count: int) -> NDArray[np.int64]:
    """Voxels of each of `count` pieces, of a map of their numbers from 1."""
    numbers = pieces.ravel(order="K")
    some = max(AT_ONCE, 4 * count)  # `bincount` copies to 64 bits
    sizes = np.zeros(count + 1, dtype=np.int64)
    for start in range(0, numbers.size, some):
        sizes += np.bincount(numbers[start : start + some], minlength=count + 1)
    return sizes[1:]


def bounding_box(mask: NDArray[np.generic]) -> Box | None:
    """Slices of the smallest box around what is not zero; None if everything is."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if occupied.size == 0:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def longest_in_plane_diameter_mm(mask: NDArray[np.generic], affine: ArrayLike) -> float:
    """Longest straight line within one axial slice between two corners of the mask's voxels, in mm; 0.0 if empty.

    Axial slices lie across the stored axis nearest to superior-inferior. The line may leave the mask.

    Args:
        mask: `(X, Y, Z)`; what is not zero counts, as one lesion.
        affine: the mask's affine.
    """
    box = bounding_box(mask)
    if box is None:
        return 0.0
    axial = [axis for axis, _ in world_axes(affine)].index(SUPERIOR)
    edges_mm = np.delete(np.asarray(affine, dtype=np.float64)[:3, :3], axial, axis=1).T
    planes = np.moveaxis(mask[box] != 0, axial, 0)
    spans = [_span(planes.any(axis=axis))[:, None] * edge for axis, edge in ((2, edges_mm[0]), (1, edges_mm[1]))]
    no_longer_mm = np.linalg.norm([spans[0] + spans[1], spans[0] - spans[1]], axis=2).max(axis=0) * (1 + 1e-9)
    longest = 0.0
    for place in np.argsort(-no_longer_mm):
        if no_longer_mm[place] <= longest:  # nor will any after it be longer
            break
        longest = max(longest, _longest_mm(_outer_corners(planes[place]), edges_mm))
    return longest


def longest_3d_diameter_mm(mask: NDArray[np.generic], affine: ArrayLike) -> float:
    """Longest straight line between two corners of the mask's voxels, in any direction, in mm; 0.0 if empty.

    Args:
        mask: `(X, Y, Z)`; what is not zero counts, as one lesion.
        affine: the mask's affine.
    """
    box = bounding_box(mask)
    if box is None:
        return 0.0
    return _longest_mm(_outer_corners(mask[box] != 0), np.asarray(affine, dtype=np.float64)[:3, :3].T)


def _span(occupied: NDArray[np.bool_]) -> NDArray[np.int64]:
    """From the first to the last of each row `(rows, n)`, in steps of one voxel."""
    last = occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
    return np.where(occupied.any(axis=1), last - occupied.argmax(axis=1), 0)


def _outer_corners(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Corners of voxels `(N, axes)`, in voxels: the outermost along the last axis, and so all of the hull's."""
    length = mask.shape[-1]
    occupied = mask.any(axis=-1)
    first = np.where(occupied, mask.argmax(axis=-1), length)
    stop = np.where(occupied, length - mask[..., ::-1].argmax(axis=-1), -1)
    around = [n + 1 for n in occupied.shape]
    low, high = np.full(around, length), np.full(around, -1)
    for sides in product((slice(None, -1), slice(1, None)), repeat=occupied.ndim):  # of a corner, where voxels may be
        np.minimum(low[sides], first, out=low[sides])
        np.maximum(high[sides], stop, out=high[sides])
    there = np.nonzero(high >= 0)
    return np.concatenate([np.column_stack([*there, ends[there]]) for ends in (low, high)]) - 0.5


def _longest_mm(points: NDArray[np.float64], edges_mm: NDArray[np.float64]) -> float:
    """Longest distance between two points `(N, axes)` of a grid whose axes step by `edges_mm` `(axes, 2 or 3)`."""
    from scipy.spatial import ConvexHull  # slow to import, and most callers never measure
    from scipy.spatial.distance import pdist

    outline = points if len(points) <= MOST_PAIRED else points[ConvexHull(points).vertices]
    return float(pdist(outline @ edges_mm).max())


def _describe(affine: ArrayLike) -> str:
    spacing = " x ".join(f"{length:.4g}" for length in spacing_mm(affine))
    origin = ", ".join(f"{value:.5g}" for value in np.asarray(affine)[:3, 3])
    return f"{orientation_code(affine)} {spacing} mm at ({origin})"
