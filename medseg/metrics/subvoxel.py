"""Sub-voxel surfaces: a surface element at each voxel corner where the mask changes, weighted by its area.

Around a corner lie 8 voxels (in 2D 4). Which of them are inside makes a code, and the code decides the area of the
piece of surface that a marching cube puts there, through the middles of the edges between inside and outside. This is
the definition of the `surface-distance` package of DeepMind. Its table of 256 codes follows from six shapes, because
the smaller of the two sides (inside or outside) falls into separate groups of corners, each with a cap of its own.

Reference:
    Nikolov et al., "Clinically Applicable Segmentation of Head and Neck Anatomy for Radiotherapy: Deep Learning
    Algorithm Development and Validation Study", J Med Internet Res 2021; Lorensen and Cline, "Marching cubes", 1987.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, ...]


def surface_elements(
    mask: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which voxel corners are on the surface, and how much of it each has.

    Args:
        mask: `(X, Y)` or `(X, Y, Z)`; outside the array is outside the mask, so the surface is always closed.
        spacing_mm: voxel edge lengths.

    Returns:
        Corners `(X + 1, Y + 1[, Z + 1])`, corner `i` between voxels `i - 1` and `i`; then the area in mm2 (in 2D the
        length in mm) of each surface corner, in the order of `np.argwhere`.
    """
    codes = np.zeros([size + 1 for size in mask.shape], dtype=np.uint8)
    voxels = np.ascontiguousarray(mask, dtype=bool).view(np.uint8)
    for bit, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        window = tuple(slice(1 - step, 1 - step + size) for step, size in zip(corner, mask.shape, strict=True))
        codes[window] |= voxels << bit
    full = 2 ** (2**mask.ndim) - 1
    surface = (codes != 0) & (codes != full)
    return surface, element_sizes(tuple(float(length) for length in spacing_mm))[codes[surface]]


@lru_cache(maxsize=16)
def element_sizes(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Area in mm2 of each of 256 codes (in 2D: length in mm of 16); bit `i` is the `i`-th voxel around the corner.

    Args:
        spacing_mm: voxel edge lengths, two or three.
    """
    corners = list(product((0, 1), repeat=len(spacing_mm)))
    sizes = np.zeros(2 ** len(corners))
    for code in range(1, len(sizes) - 1):
        inside = [corner for bit, corner in enumerate(corners) if code >> bit & 1]
        if 2 * len(inside) > len(corners):  # the surface is the same from the other side
            inside = [corner for corner in corners if corner not in inside]
        sizes[code] = sum(_cap(group, np.array(spacing_mm)) for group in _groups(inside))
    return sizes


def _groups(corners: list[Corner]) -> list[list[Corner]]:
    """Corners joined through edges of the cube."""
    groups: list[list[Corner]] = []
    for corner in corners:
        joined = [group for group in groups if any(_edge(corner, other) is not None for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([corner, *(other for group in joined for other in group)])
    return groups


def _edge(first: Corner, second: Corner) -> int | None:
    """The axis of the edge between two corners, None if none joins them."""
    differing = [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    return differing[0] if len(differing) == 1 else None


def _cap(group: list[Corner], spacing: NDArray[np.float64]) -> float:
    """Size of the surface that cuts a group of joined corners off; area vectors are in units of the voxel's faces."""
    dims = len(spacing)
    if dims == 2:  # one corner: across it; two: along the edge between them
        axes = [axis for axis in range(dims) if len({corner[axis] for corner in group}) == 2]
        return float(spacing[axes[0]] if axes else np.linalg.norm(spacing) / 2)
    faces = np.prod(spacing) / spacing
    axis_of = np.eye(3)
    neighbors = {corner: [axis for other in group if (axis := _edge(corner, other)) is not None] for corner in group}
    if len(group) == 1:  # a triangle
        vectors = [np.full(3, 1 / 8)]
    elif len(group) == 2:  # a rectangle along the edge
        vectors = [(1 - axis_of[neighbors[group[0]][0]]) / 2]
    elif len(group) == 3:  # a triangle over the three, and a trapezoid down to the face they are on
        (plane,) = (axis for axis in range(3) if len({corner[axis] for corner in group}) == 1)
        vectors = [axis_of[plane] / 2, np.full(3, 3 / 8)]
    elif max(len(axes) for axes in neighbors.values()) == 3:  # a corner and its neighbors: a hexagon
        vectors = [np.full(3, 3 / 4)]
    elif min(len(axes) for axes in neighbors.values()) == 2:  # a whole face
        vectors = [np.array([float(len({corner[axis] for corner in group}) == 1) for axis in range(3)])]
    else:  # a chain of four, which turns twice: a parallelogram, and a triangle at each end
        ends = [axes[0] for axes in neighbors.values() if len(axes) == 1]
        vectors = [np.full(3, 1 / 2), *((1 - axis_of[end]) / 4 for end in ends)]
    return float(sum(np.linalg.norm(vector * faces) for vector in vectors))
