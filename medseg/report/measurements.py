"""Volumes, lesion counts and diameters of one label map, and the tables they go to."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.geometry import connected_lesions, longest_in_plane_diameter_mm, voxel_volume_ml
from medseg.writing import aside

Row = dict[str, Any]


def measure(
    label: NDArray[np.integer],
    affine: NDArray[np.float64],
    *,
    regions: Mapping[str, Sequence[int]],
    lesion_region: str | None = None,
) -> tuple[Row, list[Row]]:
    """Measurements of a case, and of each of its lesions.

    Args:
        label: integer map `(X, Y, Z)`.
        affine: `(4, 4)`, voxel index -> RAS mm.
        regions: region name -> the label values it is made of.
        lesion_region: region whose connected pieces are the lesions; none are sought if absent.

    Returns:
        The case's row: `<region>_ml` a region, `lesion_count`, `longest_diameter_mm` (both None without
        `lesion_region`; 0.0 mm without a lesion). Then one row a lesion, largest first: `lesion` (from 1), `volume_ml`,
        `longest_in_plane_diameter_mm` and its centroid `x_mm, y_mm, z_mm` (RAS).
    """
    voxel_ml = voxel_volume_ml(affine)
    row: Row = {f"{name}_ml": float(np.isin(label, values).sum() * voxel_ml) for name, values in regions.items()}
    if lesion_region is None:
        return row | {"lesion_count": None, "longest_diameter_mm": None}, []
    lesions = _lesion_rows(np.isin(label, regions[lesion_region]), affine)
    longest = max((lesion["longest_in_plane_diameter_mm"] for lesion in lesions), default=0.0)
    return row | {"lesion_count": len(lesions), "longest_diameter_mm": longest}, lesions


def measure_image(
    label: NDArray[np.integer], *, regions: Mapping[str, Sequence[int]], lesion_region: str | None = None
) -> tuple[Row, list[Row]]:
    """Measurements of a 2D image, in pixels: an image has no mm.

    Args:
        label: integer map `(X, Y, 1)`.
        regions: region name -> the label values it is made of.
        lesion_region: region whose connected pieces are the lesions; none are sought if absent.

    Returns:
        The case's row: `<region>_px` a region, `lesion_count`, `longest_diameter_px` (both None without
        `lesion_region`). Then one row a lesion, largest first: `lesion`, `area_px`, `longest_diameter_px` and its
        centroid `x_px, y_px`, counted from the first column and row.
    """
    row: Row = {f"{name}_px": int(np.isin(label, values).sum()) for name, values in regions.items()}
    if lesion_region is None:
        return row | {"lesion_count": None, "longest_diameter_px": None}, []
    mask = np.isin(label, regions[lesion_region])
    sizes = np.bincount(connected_lesions(mask).ravel())[1:].tolist()
    lesions = [
        {
            "lesion": lesion["lesion"],
            "area_px": area,
            "longest_diameter_px": lesion["longest_in_plane_diameter_mm"],  # of a grid whose unit is the pixel
            "x_px": lesion["x_mm"],
            "y_px": lesion["y_mm"],
        }
        for lesion, area in zip(_lesion_rows(mask, np.eye(4)), sizes, strict=True)
    ]
    longest = max((lesion["longest_diameter_px"] for lesion in lesions), default=0.0)
    return row | {"lesion_count": len(lesions), "longest_diameter_px": longest}, lesions


def _lesion_rows(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> list[Row]:
    """One row a connected piece of `mask`, largest first."""
    numbers = connected_lesions(mask)
    rows = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        lesion = numbers[box] == number  # the box alone: a diameter does not depend on where the lesion lies
        center = [part.start + mean for part, mean in zip(box, ndimage.center_of_mass(lesion), strict=True)]
        x_mm, y_mm, z_mm = (affine[:3, :3] @ center + affine[:3, 3]).tolist()
        rows.append(
            {
                "lesion": number,
                "volume_ml": float(lesion.sum() * voxel_volume_ml(affine)),
                "longest_in_plane_diameter_mm": longest_in_plane_diameter_mm(lesion, affine),
                "x_mm": x_mm,
                "y_mm": y_mm,
                "z_mm": z_mm,
            }
        )
    return rows


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
