"""Volumes, lesions and diameters of one label map, and the tables they go to."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import Box, longest_3d_diameter_mm, longest_in_plane_diameter_mm, voxel_volume_ml
from medseg.regions import LabelFacts, Lesions
from medseg.writing import aside

Row = dict[str, Any]
THIRDS = (("left", "middle", "right"), ("posterior", "middle", "anterior"), ("lower", "middle", "upper"))  # low to high


def measure(
    label: NDArray[np.integer] | LabelFacts,
    affine: NDArray[np.float64],
    *,
    regions: Mapping[str, Sequence[int]],
    lesion_region: str | None = None,
    found: Lesions | None = None,
    hu: NDArray[np.generic] | None = None,
) -> tuple[Row, list[Row]]:
    """Measurements of a case, and of each of its lesions.

    Args:
        label: integer map `(X, Y, Z)`, or its facts where they are known.
        affine: `(4, 4)`, voxel index -> RAS mm.
        regions: region name -> the label values it is made of.
        lesion_region: region whose connected pieces are the lesions; none are sought if absent.
        found: its lesions, where they are known.
        hu: the CT `(X, Y, Z)`; without it lesions have no mean HU.

    Returns:
        The case's row: `<region>_ml` a region, and of the organ around the lesions `<organ>_without_<lesions>_ml`;
        `lesion_count`, `longest_diameter_mm` (of all lesions in axial planes; both None without `lesion_region`; 0.0 mm
        without a lesion). Then one row a lesion, largest first: `lesion` (from 1), `volume_ml`,
        `longest_in_plane_diameter_mm`, `longest_3d_diameter_mm`, `mean_hu`, `location` in the organ in simple terms,
        and its centroid `x_mm, y_mm, z_mm` (RAS).

    Raises:
        ValueError: if `hu` is of another shape.
    """
    facts, voxel_ml = LabelFacts.of(label), voxel_volume_ml(affine)
    row: Row = {f"{name}_ml": facts.voxels(values) * voxel_ml for name, values in regions.items()}
    organ = organ_of(regions, lesion_region)
    if lesion_region is None:
        return row | {"lesion_count": None, "longest_diameter_mm": None}, []
    if organ is not None:
        row[f"{without_lesions(organ, lesion_region)}_ml"] = row[f"{organ}_ml"] - row[f"{lesion_region}_ml"]
    found = Lesions.of(facts, regions[lesion_region]) if found is None else found
    lesions = _lesion_rows(found, affine)
    _add_mean_hu(lesions, found, hu)
    around = None if organ is None else facts.box(regions[organ])
    where = None if around is None else _Extent.of(around, affine)
    for lesion in lesions:
        center = np.array([lesion[f"{axis}_mm"] for axis in "xyz"])
        lesion["location"] = None if where is None else where.words(center)
    longest = max((lesion["longest_in_plane_diameter_mm"] for lesion in lesions), default=0.0)
    return row | {"lesion_count": len(lesions), "longest_diameter_mm": longest}, lesions


def organ_of(regions: Mapping[str, Sequence[int]], lesion_region: str | None) -> str | None:
    """The smallest region that holds the lesions and more; None if there is none."""
    if lesion_region is None:
        return None
    lesion = set(regions[lesion_region])
    around = [(len(set(values)), name) for name, values in regions.items() if lesion < set(values)]
    return min(around)[1] if around else None


def without_lesions(organ: str, lesion_region: str) -> str:
    """Name of an organ without its lesions, as columns have it."""
    return f"{organ}_without_{lesion_region}"


def measure_image(
    label: NDArray[np.integer] | LabelFacts,
    *,
    regions: Mapping[str, Sequence[int]],
    lesion_region: str | None = None,
    found: Lesions | None = None,
) -> tuple[Row, list[Row]]:
    """Measurements of a 2D image, in pixels: an image has no mm.

    Args:
        label: integer map `(X, Y, 1)`, or its facts where they are known.
        regions: region name -> the label values it is made of.
        lesion_region: region whose connected pieces are the lesions; none are sought if absent.
        found: its lesions, where they are known.

    Returns:
        The case's row: `<region>_px` a region, `lesion_count`, `longest_diameter_px` (both None without
        `lesion_region`). Then one row a lesion, largest first: `lesion`, `area_px`, `longest_diameter_px` and its
        centroid `x_px, y_px`, counted from the first column and row.
    """
    facts = LabelFacts.of(label)
    row: Row = {f"{name}_px": facts.voxels(values) for name, values in regions.items()}
    if lesion_region is None:
        return row | {"lesion_count": None, "longest_diameter_px": None}, []
    found = Lesions.of(facts, regions[lesion_region]) if found is None else found
    lesions = [
        {
            "lesion": lesion["lesion"],
            "area_px": area,
            "longest_diameter_px": lesion["longest_in_plane_diameter_mm"],  # of a grid whose unit is the pixel
            "x_px": lesion["x_mm"],
            "y_px": lesion["y_mm"],
        }
        for lesion, area in zip(_lesion_rows(found, np.eye(4)), found.sizes, strict=True)
    ]
    longest = max((lesion["longest_diameter_px"] for lesion in lesions), default=0.0)
    return row | {"lesion_count": len(lesions), "longest_diameter_px": longest}, lesions


@dataclass(frozen=True)
class _Extent:
    """An organ's box along the patient's axes, to say where in it something lies.

    Attributes:
        low: its right-, front- and head-most opposite ends: left, back and foot, RAS mm.
        high: its right, front and head ends, RAS mm.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, box: Box, affine: NDArray[np.float64]) -> "_Extent":
        """Of an organ's box of voxels; of an oblique one the box around that."""
        corners = np.array(list(product(*((part.start, part.stop - 1) for part in box))))
        places = corners @ affine[:3, :3].T + affine[:3, 3]
        return cls(places.min(axis=0), places.max(axis=0))

    def words(self, place: NDArray[np.float64]) -> str:
        """The third of the organ along each axis, such as "right, middle, upper third"."""
        share = (place - self.low) / np.maximum(self.high - self.low, 1e-9)
        thirds = np.clip((share * 3).astype(int), 0, 2).tolist()
        side, depth, height = (names[third] for names, third in zip(THIRDS, thirds, strict=True))
        return f"{side}, {depth}, {height} third"


def _lesion_rows(found: Lesions, affine: NDArray[np.float64]) -> list[Row]:
    """One row a lesion, in the order of their numbers."""
    rows, voxel_ml = [], voxel_volume_ml(affine)
    for number, (voxels, box, center) in enumerate(zip(found.sizes, found.boxes, found.centers, strict=True), start=1):
        lesion = found.numbers[box] == number  # the box alone: a diameter does not depend on where the lesion lies
        x_mm, y_mm, z_mm = (affine[:3, :3] @ center + affine[:3, 3]).tolist()
        rows.append(
            {
                "lesion": number,
                "volume_ml": voxels * voxel_ml,
                "longest_in_plane_diameter_mm": longest_in_plane_diameter_mm(lesion, affine),
                "longest_3d_diameter_mm": longest_3d_diameter_mm(lesion, affine),
                "x_mm": x_mm,
                "y_mm": y_mm,
                "z_mm": z_mm,
            }
        )
    return rows


def _add_mean_hu(lesions: Sequence[Row], found: Lesions, hu: NDArray[np.generic] | None) -> None:
    """Add to each lesion's row the mean HU of its voxels; None without a CT."""
    means: Sequence[float | None] = [None] * len(lesions)
    if hu is not None and hu.shape != found.shape:
        raise ValueError(f"mean_hu: values of {hu.shape} voxels for a label of {found.shape}; give both on one grid")
    if hu is not None and lesions:
        inside = np.nonzero(found.numbers)
        sums = np.bincount(found.numbers[inside], weights=hu[found.box][inside].astype(np.float64))
        means = (sums[1:] / found.sizes).tolist()
    for lesion, mean in zip(lesions, means, strict=True):
        lesion["mean_hu"] = mean


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as a CSV file, whole or not at all.

    Floats are rounded to 4 decimals; None and NaN become an empty cell, as does a column that a row lacks.

    Args:
        path: file to write or replace.
        rows: one mapping a line.
        columns: header, in order.

    Raises:
        ValueError: if a row has a key that is no column.
    """
    with aside(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):  # NumPy's float64 is one too
        return "" if math.isnan(value) else round(float(value), 4)
    return "" if value is None else value
