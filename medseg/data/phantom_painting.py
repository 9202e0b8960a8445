"""Painting of the phantom: parts (a shape, its HU a phase, its label) laid over each other on a voxel grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.data.phantom_shapes import Floats, Millimeters, Points, Shape

Hu = tuple[float, float]  # portal-venous, arterial


@dataclass(frozen=True)
class VoxelGrid:
    """A regular grid in the patient's own frame: `origin` is the first voxel's center."""

    shape: tuple[int, int, int]
    spacing: Millimeters
    origin: Millimeters

    def axes(self) -> list[Floats]:
        """Voxel centers along each axis, in mm."""
        return [
            (start + step * np.arange(n)).astype(np.float32)
            for start, step, n in zip(self.origin, self.spacing, self.shape, strict=True)
        ]

    def affine(self) -> NDArray[np.float64]:
        """Voxel index -> mm of the patient's frame, `(4, 4)`."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine


@dataclass(frozen=True)
class Part:
    """A shape with its HU a phase.

    Attributes:
        shape: where.
        hu: CT value in each phase.
        label: value it gives the label; None leaves the label as it is.
        grow: mm by which the shape is blown up, or shrunk where negative.
        texture: standard deviation in HU of noise about 9 mm wide.
        only_in: paints inside of this label only; None paints anywhere.
        in_mm: the shape is meant in mm of the patient, not of the standard trunk.
    """

    shape: Shape
    hu: Hu
    label: int | None = None
    grow: float = 0.0
    texture: float = 0.0
    only_in: int | None = None
    in_mm: bool = False


@dataclass(frozen=True)
class Canvas:
    """What is painted on: `hu` and `label` of one voxel grid, changed in place.

    Attributes:
        hu: CT values `(X, Y, Z)`.
        label: integer map `(X, Y, Z)`.
        body: each voxel's place in the standard trunk, in which organs are drawn.
        plain: each voxel's place in the patient in mm, in which lesions are drawn.
        reach: along each axis, places in the trunk before it is warped, and in the patient.
    """

    hu: Floats
    label: NDArray[np.uint8]
    body: Points
    plain: Points
    reach: list[tuple[Floats, Floats]]


@dataclass(frozen=True)
class SmoothNoise:
    """Noise of unit variance that depends on mm and not on the grid: cubic B-splines on random knots."""

    knots: Floats
    width_mm: float

    @staticmethod
    def draw(rng: np.random.Generator, width_mm: float) -> "SmoothNoise":
        """Knots `width_mm` apart over 440 mm, as wide as any field of view here."""
        count = int(440 / width_mm) + 4
        return SmoothNoise(rng.standard_normal((count, count, count), dtype=np.float32), width_mm)

    def on(self, axes: Sequence[Floats]) -> Floats:
        """Its values on the grid of these axes (mm)."""
        values = self.knots
        for axis in axes:  # contracts the first knot axis, appends the voxel axis
            values = np.tensordot(values, self._weights(axis), axes=(0, 0))
        return values / np.float32(0.479**1.5)  # 0.479: mean over positions of the sum of squared weights

    def _weights(self, axis: Floats) -> Floats:
        count = self.knots.shape[0]
        away = np.abs(np.arange(count, dtype=np.float32)[:, None] - (axis / self.width_mm + (count - 1) / 2))
        near = 2 / 3 - away**2 + away**3 / 2
        far = np.clip(2 - away, 0, None) ** 3 / 6
        return np.where(away < 1, near, far).astype(np.float32)


def paint(canvas: Canvas, parts: Sequence[Part], grid: VoxelGrid, phase: int) -> None:
    """Paint `parts` in order, with borders softened over about a voxel."""
    soft = np.float32(sum(grid.spacing) / 3)
    for part in parts:
        box = _voxel_box(canvas, part)
        at = (canvas.plain if part.in_mm else canvas.body).at(box)
        if not at.x.size:
            continue
        distance = part.shape.distance(at) - np.float32(part.grow)
        cover = np.clip(0.5 - distance / soft, 0, 1)
        hu, label = canvas.hu[box], canvas.label[box]
        inside = distance < 0
        if part.only_in is not None:
            allowed = label == part.only_in
            inside &= allowed
            cover *= allowed
        hu += cover * (part.hu[phase] + part.texture * at.fine - hu)
        if part.label is not None:
            label[inside] = part.label


def _voxel_box(canvas: Canvas, part: Part) -> tuple[slice, ...]:
    low, high = part.shape.box()
    margin = 5 + max(part.grow, 0) + (0 if part.in_mm else 17)  # 17 mm: as far as the warp reaches
    box = []
    for (body, plain), first, last in zip(canvas.reach, low, high, strict=True):
        axis = plain if part.in_mm else body
        start, stop = np.searchsorted(axis, [first - margin, last + margin])
        box.append(slice(int(start), int(stop)))
    return tuple(box)
