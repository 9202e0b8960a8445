"""Grids and what is measured on them: spacing, volume, orientation, connected lesions, longest diameters.

Every affine is `(4, 4)`, voxel index to mm, world axes growing to the patient's right, anterior and superior (RAS).
"""

from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[slice, ...]
AXIS_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
SUPERIOR = 2


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
    lesions = np.ascontiguousarray(mask)  # so that ties are numbered alike whatever the memory order
    # as bytes: with booleans cc3d 4.1.1 numbers some 2D maps wrongly and fails on lines of voxels
    pieces = cc3d.connected_components(lesions.view(np.uint8), connectivity=26 if mask.ndim == 3 else 8)
    found = cc3d.statistics(pieces, no_slice_conversion=True)
    known = {name: found[name][1:] for name in ("voxel_counts", "bounding_boxes", "centroids")}
    by_size = np.argsort(-known["voxel_counts"].astype(np.int64), kind="stable")
    rank = np.zeros(len(by_size) + 1, dtype=np.int32)
    rank[1 + by_size] = np.arange(1, len(by_size) + 1)
    return rank[pieces], {name: values[by_size] for name, values in known.items()}


def piece_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Voxels of each connected piece, as `connected_lesions` joins them, in no order."""
    pieces = cc3d.connected_components(np.ascontiguousarray(mask).view(np.uint8), connectivity=26)
    sizes: NDArray[np.int64] = cc3d.statistics(pieces, no_slice_conversion=True)["voxel_counts"][1:].astype(np.int64)
    return sizes


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
    return max(_diameter_mm(plane != 0, edges_mm) for plane in np.moveaxis(mask[box], axial, 0))


def longest_3d_diameter_mm(mask: NDArray[np.generic], affine: ArrayLike) -> float:
    """Longest straight line between two corners of the mask's voxels, in any direction, in mm; 0.0 if empty.

    Args:
        mask: `(X, Y, Z)`; what is not zero counts, as one lesion.
        affine: the mask's affine.
    """
    from scipy.spatial import ConvexHull  # see _diameter_mm
    from scipy.spatial.distance import pdist

    box = bounding_box(mask)
    if box is None:
        return 0.0
    inside = mask[box] != 0
    rows = np.argwhere(inside.any(axis=2))  # a row's outermost voxels along the last axis hold its part of the hull
    columns = inside[rows[:, 0], rows[:, 1]]
    first = columns.argmax(axis=1)
    last = inside.shape[2] - 1 - columns[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack([rows, first - 0.5]), np.column_stack([rows, last + 0.5])])
    steps = np.array([(x, y, 0.0) for x in (-0.5, 0.5) for y in (-0.5, 0.5)])
    points = (ends[:, None] + steps).reshape(-1, 3)
    outline = points[ConvexHull(points).vertices]
    return float(pdist(outline @ np.asarray(affine, dtype=np.float64)[:3, :3].T).max())


def _diameter_mm(plane: NDArray[np.bool_], edges_mm: NDArray[np.float64]) -> float:
    """Longest distance between voxel corners of one slice, whose axes step by `edges_mm` `(2, 3)`."""
    from scipy.spatial import ConvexHull  # half a second to import, and most callers never measure
    from scipy.spatial.distance import pdist

    rows = np.flatnonzero(plane.any(axis=1))
    if rows.size == 0:
        return 0.0
    first = plane[rows].argmax(axis=1)  # a row's outermost voxels hold its part of the hull
    last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    corners = [np.stack([rows + step, column], axis=1) for step in (-0.5, 0.5) for column in (first - 0.5, last + 0.5)]
    points = np.concatenate(corners)
    outline = points[ConvexHull(points).vertices]
    return float(pdist(outline @ edges_mm).max())


def _describe(affine: ArrayLike) -> str:
    spacing = " x ".join(f"{length:.4g}" for length in spacing_mm(affine))
    origin = ", ".join(f"{value:.5g}" for value in np.asarray(affine)[:3, 3])
    return f"{orientation_code(affine)} {spacing} mm at ({origin})"
