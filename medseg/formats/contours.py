"""Outlines of a mask in one plane, each a single polygon: holes are joined to the outline around them."""

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
OFF_THE_MIDDLE = 0.382


def outlines(plane: NDArray[np.bool_]) -> list[Polygon]:
    """Closed outlines `(N, 2)` of a plane, in voxel indices, halfway between the voxels inside and outside.

    A hole is joined to the outline around it by a channel without width, so that each outline is one polygon and a
    voxel is in the mask exactly if it lies in an odd number of them.

    Args:
        plane: `(X, Y)`.
    """
    from skimage.measure import find_contours

    contours = [_open(points - 1) for points in find_contours(np.pad(plane, 1).astype(np.float32), 0.5)]
    outer = [points for points in contours if _area(points) * _sense(contours, plane) > 0]
    holes = [points for points in contours if _area(points) * _sense(contours, plane) < 0]
    owners = [_owner(hole, outer) for hole in holes]
    joined = []
    for index, outline in enumerate(outer):
        own = [hole for hole, owner in zip(holes, owners, strict=True) if owner == index]
        joined.append(_with_holes(outline, own))
    return joined


def _open(points: Polygon) -> Polygon:
    """Without the last point, which repeats the first."""
    return points[:-1]


def _area(points: Polygon) -> float:
    """Signed area by the shoelace formula."""
    following = np.roll(points, -1, axis=0)
    return float(np.sum(points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]) / 2)


def _sense(contours: list[Polygon], plane: NDArray[np.bool_]) -> float:
    """Sign of the area of outer outlines: that of the largest one, which nothing lies around."""
    areas = [_area(points) for points in contours]
    return float(np.sign(areas[int(np.argmax(np.abs(areas)))])) if areas else 1.0


def _owner(hole: Polygon, outer: list[Polygon]) -> int:
    """Index of the smallest outline around a hole."""
    around = [
        (abs(_area(outline)), index) for index, outline in enumerate(outer) if inside(outline, hole[:1])[0]
    ]  # a hole never touches its outline: both lie between voxels
    return min(around)[1]


def _with_holes(outline: Polygon, holes: list[Polygon]) -> Polygon:
    for hole in sorted(holes, key=lambda points: float(points[:, 0].min())):
        gates, hole_gates = _gates(outline), _gates(hole)
        distance = ((gates[:, None] - hole_gates[None]) ** 2).sum(axis=2)
        near, start = np.unravel_index(int(distance.argmin()), distance.shape)
        ring = np.concatenate([np.roll(hole, -(start + 1), axis=0), hole_gates[start : start + 1]])
        gate, hole_gate = gates[near : near + 1], hole_gates[start : start + 1]
        outline = np.concatenate([outline[: near + 1], gate, hole_gate, ring, gate, outline[near + 1 :]])
    return outline


def _gates(points: Polygon) -> Polygon:
    """Where a channel may end: off the middle of each edge, so that none runs through the centers of voxels."""
    return points + OFF_THE_MIDDLE * (np.roll(points, -1, axis=0) - points)


def inside(polygon: Polygon, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points `(P, 2)` lie in a polygon `(N, 2)`, by the even-odd rule."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    crosses = (start[:, 1] > points[:, None, 1]) != (end[:, 1] > points[:, None, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
        at = start[:, 0] + (points[:, None, 1] - start[:, 1]) * slope
    return np.count_nonzero(crosses & (points[:, None, 0] < at), axis=1) % 2 == 1
