"""Shapes of the phantom: signed distances in mm, evaluated at points that carry smooth noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float32]
Millimeters = tuple[float, float, float]

FLAT = float("inf")  # a radius without end: a cylinder, a slab


class Points(NamedTuple):
    """Coordinates in mm and smooth noise (25 mm and 9 mm wide, standard deviation 1), all of one shape."""

    x: Floats
    y: Floats
    z: Floats
    coarse: Floats
    fine: Floats

    def at(self, box: tuple[slice, ...]) -> "Points":
        """The points of a part of the grid."""
        return Points(*(values[box] for values in self))


class Shape(Protocol):
    """A closed surface; distances are negative inside and about right near it."""

    def distance(self, at: Points) -> Floats:
        """Signed distance in mm at each point."""
        ...

    def box(self) -> tuple[Millimeters, Millimeters]:
        """Lowest and highest corner that enclose the inside, in mm."""
        ...


@dataclass(frozen=True)
class Ellipsoid:
    """Ellipsoid turned by degrees about x, y, z; a radius `FLAT` makes it a cylinder or a slab."""

    center: Millimeters
    radii: Millimeters
    turn: tuple[float, ...] = (0.0, 0.0, 0.0)

    def distance(self, at: Points) -> Floats:
        """Signed distance in mm at each point."""
        offsets = [
            at.x - np.float32(self.center[0]),
            at.y - np.float32(self.center[1]),
            at.z - np.float32(self.center[2]),
        ]
        if any(self.turn):
            matrix = Rotation.from_euler("xyz", self.turn, degrees=True).as_matrix().T.astype(np.float32)
            offsets = [row[0] * offsets[0] + row[1] * offsets[1] + row[2] * offsets[2] for row in matrix]
        pairs = [(offset, r) for offset, r in zip(offsets, self.radii, strict=True) if r != FLAT]
        scaled = np.sqrt(sum((offset * np.float32(1 / r)) ** 2 for offset, r in pairs))
        slope = np.sqrt(sum((offset * np.float32(1 / r**2)) ** 2 for offset, r in pairs))
        shortest = np.float32(min(r for _, r in pairs))  # what the ratio is at least; at the center itself it is 0 / 0
        return (scaled - 1) * np.maximum(scaled / np.maximum(slope, np.float32(1e-6)), shortest)

    def box(self) -> tuple[Millimeters, Millimeters]:
        """Lowest and highest corner that enclose the inside, in mm."""
        radii = [max(self.radii)] * 3 if any(self.turn) else self.radii
        return _around([self.center], radii)


@dataclass(frozen=True)
class Tube:
    """A bent cylinder along `path` with a radius at each of its points."""

    path: Sequence[Millimeters]
    radii: Sequence[float]

    def distance(self, at: Points) -> Floats:
        """Signed distance in mm at each point."""
        pieces = zip(pairwise(self.path), pairwise(self.radii), strict=True)
        return np.minimum.reduce([_segment_distance(at, *ends, *radii) for ends, radii in pieces])

    def box(self) -> tuple[Millimeters, Millimeters]:
        """Lowest and highest corner that enclose the inside, in mm."""
        return _around(self.path, [max(self.radii)] * 3)


def _segment_distance(at: Points, start: Millimeters, end: Millimeters, r_start: float, r_end: float) -> Floats:
    along = [np.float32(b - a) for a, b in zip(start, end, strict=True)]
    x, y, z = at.x - np.float32(start[0]), at.y - np.float32(start[1]), at.z - np.float32(start[2])
    length2 = np.float32(max(sum(float(d) ** 2 for d in along), 1e-6))
    t = np.clip((x * along[0] + y * along[1] + z * along[2]) / length2, 0, 1)
    off = (x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2
    return np.sqrt(off) - (np.float32(r_start) + t * np.float32(r_end - r_start))


def _around(points: Sequence[Millimeters], radii: Sequence[float]) -> tuple[Millimeters, Millimeters]:
    low, high = np.min(points, axis=0) - radii, np.max(points, axis=0) + radii
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


@dataclass(frozen=True)
class Blend:
    """Union whose crease is filled over `width` mm."""

    shapes: Sequence[Shape]
    width: float = 0.0

    def distance(self, at: Points) -> Floats:
        """Signed distance in mm at each point."""
        total = self.shapes[0].distance(at)
        for shape in self.shapes[1:]:
            other = shape.distance(at)
            smooth = np.maximum(self.width - np.abs(total - other), 0) ** 2 / (4 * self.width) if self.width else 0
            total = np.minimum(total, other) - smooth
        return total

    def box(self) -> tuple[Millimeters, Millimeters]:
        """Lowest and highest corner that enclose the inside, in mm."""
        boxes = np.array([shape.box() for shape in self.shapes])
        return tuple(boxes[:, 0].min(axis=0) - self.width / 2), tuple(boxes[:, 1].max(axis=0) + self.width / 2)


@dataclass(frozen=True)
class Cut:
    """`shape` inside `within` and outside `without`, kept `gap` mm away from both."""

    shape: Shape
    within: Sequence[Shape] = ()
    without: Sequence[Shape] = ()
    gap: float = 0.0

    def distance(self, at: Points) -> Floats:
        """Signed distance in mm at each point."""
        limits = [other.distance(at) + self.gap for other in self.within]
        holes = [self.gap - other.distance(at) for other in self.without]
        return np.maximum.reduce([self.shape.distance(at), *limits, *holes])

    def box(self) -> tuple[Millimeters, Millimeters]:
        """Lowest and highest corner that enclose the inside, in mm."""
        boxes = np.array([self.shape.box(), *(other.box() for other in self.within)])
        return tuple(boxes[:, 0].max(axis=0)), tuple(boxes[:, 1].min(axis=0))


@dataclass(frozen=True)
class Rough:
    """A surface moved in and out by coarse noise of `amount` mm."""

    shape: Shape
    amount: float

    def distance(self, at: Points) -> Floats:
        """Signed distance in mm at each point."""
        return self.shape.distance(at) + np.float32(self.amount) * at.coarse

    def box(self) -> tuple[Millimeters, Millimeters]:
        """Lowest and highest corner that enclose the inside, in mm."""
        low, high = np.array(self.shape.box())
        return tuple(low - 3.5 * self.amount), tuple(high + 3.5 * self.amount)


@dataclass(frozen=True)
class Shrunk:
    """A surface moved inward only, by fine noise of about `amount` mm: the size stays an upper bound."""

    shape: Shape
    amount: float

    def distance(self, at: Points) -> Floats:
        """Signed distance in mm at each point."""
        inward: Floats = np.float32(self.amount) * np.abs(at.fine)
        return self.shape.distance(at) + inward

    def box(self) -> tuple[Millimeters, Millimeters]:
        """Lowest and highest corner that enclose the inside, in mm."""
        return self.shape.box()
