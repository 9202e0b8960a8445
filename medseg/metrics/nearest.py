"""Distance from each point of one voxel grid to the nearest point of another, exact, for any affine.

A prediction's surface mostly lies within a few voxels of the reference's. So the neighborhood of each point is looked
through first, nearest offsets first, which is one array look-up an offset for all points together. A k-d tree answers
for what is left; if that is much, as after a training's first epochs, a distance transform of the whole grid does. All
three are exact.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

OFFSETS = 1000  # as many look-ups a point cost about as much as one answer of the tree
ROUND = 100  # look-ups after which there must be something to show for them
FEW = 0.1  # share of the points found in a round below which the others are too far for this
MANY = 20_000  # points that the tree answers for in no time
TRANSFORM = 300  # voxels that a distance transform does in the time of one answer of the tree


def nearest_distances(
    points: NDArray[np.bool_], targets: NDArray[np.bool_], axes_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances from each point to the nearest target, and from each target to the nearest point, in mm.

    Args:
        points: which voxels are points, `(*spatial)`.
        targets: the same of the other set.
        axes_mm: `(dims, dims)`, one voxel's step along each axis as a column.

    Returns:
        One distance a point and one a target, each in the order of `np.argwhere`; inf where the other set is empty.
    """
    shells = _shells(tuple(map(tuple, np.asarray(axes_mm, dtype=np.float64).tolist())))
    margins = [int(np.abs(offsets[:, axis]).max()) for axis in range(points.ndim) for offsets in [_stacked(shells)]]
    first, second = _padded(points, margins), _padded(targets, margins)
    strides = np.array([int(np.prod(first.shape[axis + 1 :])) for axis in range(first.ndim)])
    steps = [(distance, (offsets @ strides).tolist()) for distance, offsets in shells]
    first_at, second_at = np.flatnonzero(first), np.flatnonzero(second)
    return (
        _distances(first_at, second_at, second, steps, axes_mm),
        _distances(second_at, first_at, first, steps, axes_mm),
    )


def _distances(
    at: NDArray[np.intp],
    targets_at: NDArray[np.intp],
    targets: NDArray[np.bool_],
    steps: list[tuple[float, list[int]]],
    axes_mm: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Distance of the points `at` (flat indices into the padded grid) to the nearest target."""
    found = np.full(len(at), np.inf)
    if len(targets_at) == 0:
        return found
    flat, left = targets.reshape(-1), np.arange(len(at))
    tried, before = 0, len(at)
    for distance, jumps in steps:
        if len(left) == 0:
            return found
        if tried >= ROUND:
            if before - len(left) < FEW * before:
                break
            tried, before = 0, len(left)
        tried += len(jumps)
        hit = flat[at + jumps[0]]
        for jump in jumps[1:]:
            hit |= flat[at + jump]
        if hit.any():
            found[left[hit]] = distance
            missed = ~hit
            left, at = left[missed], at[missed]
    if len(left) > max(MANY, targets.size / TRANSFORM) and _at_right_angles(axes_mm):
        found[left] = _transform(targets, axes_mm).reshape(-1)[at]
    elif len(left):
        tree = cKDTree(_mm(targets_at, targets.shape, axes_mm), balanced_tree=False, compact_nodes=False)
        found[left] = tree.query(_mm(at, targets.shape, axes_mm))[0]
    return found


def _transform(targets: NDArray[np.bool_], axes_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Distance of every voxel to the nearest target, by Maurer's exact transform; right angles only."""
    import SimpleITK  # a fifth of a second to import, and most cases never need it

    image = SimpleITK.GetImageFromArray(targets.view(np.uint8))
    image.SetSpacing(np.linalg.norm(axes_mm, axis=0)[::-1].tolist())  # ITK counts axes the other way round
    away = SimpleITK.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.asarray(np.maximum(SimpleITK.GetArrayViewFromImage(away), 0))  # below 0 inside of targets


def _at_right_angles(axes_mm: NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(axes_mm, axis=0)
    cosines = (axes_mm.T @ axes_mm) / np.outer(lengths, lengths)
    return bool(np.abs(cosines - np.eye(len(lengths))).max() < 1e-6)


def _mm(at: NDArray[np.intp], shape: tuple[int, ...], axes_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack(np.unravel_index(at, shape), axis=1) @ np.asarray(axes_mm, dtype=np.float64).T


def _padded(grid: NDArray[np.bool_], margins: list[int]) -> NDArray[np.bool_]:
    return np.pad(grid, [(margin, margin) for margin in margins])


def _stacked(shells: tuple[tuple[float, NDArray[np.intp]], ...]) -> NDArray[np.intp]:
    return np.concatenate([offsets for _, offsets in shells])


@lru_cache(maxsize=16)
def _shells(axes_mm: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, NDArray[np.intp]], ...]:
    """Offsets in voxels by their length in mm, shortest first: all there are up to some length, about `OFFSETS`."""
    axes = np.array(axes_mm)
    dims = len(axes)
    ball = np.pi if dims == 2 else 4 * np.pi / 3
    radius = (OFFSETS * abs(np.linalg.det(axes)) / ball) ** (1 / dims)
    reach = np.floor(radius * np.linalg.norm(np.linalg.inv(axes), axis=1) + 1e-9).astype(int)  # no farther index inside
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, dims)
    lengths = np.linalg.norm(offsets @ axes.T, axis=1)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius]
    offsets, lengths = offsets[order], lengths[order]
    starts = np.flatnonzero(np.diff(lengths, prepend=-1.0) > 1e-9 * radius)
    return tuple(
        (float(lengths[start]), shell) for start, shell in zip(starts, np.split(offsets, starts[1:]), strict=True)
    )
