"""Slices to one grid: sorted along their normal, and refused where they do not form one."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.dicom.headers import Slice
from medseg.reading.grid import checked_affine, grid_warnings

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_DIRECTION = 2e-3  # largest difference of a direction's entries: headers round them to 3 decimals or more
SAME_SPACING_MM = 1e-4
SAME_PLACE_MM = 0.01
EVEN = 0.05  # largest distance of a slice from its even place, as a part of the spacing ...
EVEN_MM = 0.06  # ... or in mm: positions rounded to 0.1 mm
SIDEWAYS_MM = 0.1  # largest distance of a slice's corner from the straight line through all corners
MOST_TILT_DEGREES = 0.5
GAP = 1.5  # spacings, from which a gap counts as missing slices
HARMLESS_NAME = re.compile(
    r"^(im|img|image|i|ct|mr|slice|sl)?[-_.]?(0*\d{1,4}|\d{1,2}[-_.]0*\d{1,3})(\.dcm|\.ima)?$", re.I
)


@dataclass(frozen=True)
class Stack:
    """Slices in the order of the third voxel axis, on one grid.

    Attributes:
        slices: sorted along the normal.
        affine: `(4, 4)` float64, voxel index (column, row, slice) to RAS mm.
        warnings: what a reader of the result should know.
    """

    slices: tuple[Slice, ...]
    affine: NDArray[np.float64]
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.slices[0].shape
        return columns, rows, len(self.slices)


def slice_name(plane: Slice) -> str:
    """How messages name a slice: its instance number, and its file's name if that cannot hold a patient's name.

    A name of letters could be a person's, and one of six digits or more a date of birth; "1-12.dcm" or "IM00012" are
    neither. The folder is never named.
    """
    number = "slice without a number" if plane.number is None else f"slice {plane.number}"
    if plane.many:
        return f"frame {plane.frame + 1}"
    return f"{number} ({plane.file.name})" if HARMLESS_NAME.match(plane.file.name) else number


def normal_of(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Unit vector across a slice, LPS, such that columns, rows and it are right-handed."""
    row, column = _directions(orientation)
    return np.cross(row, column)


def file_name(path: Path) -> str:
    """How messages name a file whose header is not known."""
    return path.name if HARMLESS_NAME.match(path.name) else "a file"


def stack_slices(slices: Sequence[Slice]) -> Stack:
    """One grid of all slices.

    The affine takes the first slice's position and the mean step from the first to the last. A tilt of up to half a
    degree stays in it (a shear that no network notices); a larger one is refused: the network would see a patient
    sheared by several cm, and a resampled scan would not be the one whose grid the mask is to lie on.

    Raises:
        DataError: if a slice is not placed, or of another size, spacing or direction than the others; if slices are
            missing, double, unevenly spaced or shifted sideways; for gantry tilt; for a single slice; for voxels of
            a size that no scanner makes.
    """
    _check_placed(slices)
    _check_alike(slices, _shape, 0, what="has another size ({} rows x {} columns)", many="sizes")
    _check_alike(slices, _spacing, SAME_SPACING_MM, what="has another pixel spacing ({:g} x {:g} mm)", many="spacings")
    _check_alike(slices, _direction, SAME_DIRECTION, what="has other directions", many="orientations")
    if len(slices) < 2:
        raise DataError("one slice only, so its spacing is unknown; a scan needs at least two")
    row, column = _directions(slices[0].orientation or ())
    normal = np.cross(row, column)
    ordered = sorted(slices, key=lambda plane: float(normal @ np.asarray(plane.position)))
    corners = np.asarray([plane.position for plane in ordered], dtype=np.float64)
    heights = corners @ normal
    _check_gaps(ordered, heights)
    uneven = _check_even(ordered, heights)
    _check_tilt(ordered, corners, normal)
    between_rows, between_columns = slices[0].pixel_spacing or (0.0, 0.0)
    affine = np.eye(4)
    affine[:3, 0] = row * between_columns
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = (corners[-1] - corners[0]) / (len(ordered) - 1)
    affine[:3, 3] = corners[0]
    affine = checked_affine(LPS_TO_RAS @ affine, "slices")
    rows, columns = slices[0].shape
    return Stack(tuple(ordered), affine, uneven + grid_warnings((columns, rows, len(ordered)), affine, "slices"))


def _directions(orientation: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along growing columns and growing rows, exactly perpendicular."""
    row, column = np.asarray(orientation[:3], dtype=np.float64), np.asarray(orientation[3:], dtype=np.float64)
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _check_placed(slices: Sequence[Slice]) -> None:
    for plane in slices:
        name = slice_name(plane)
        if plane.position is None:
            raise DataError(f"{name} has no ImagePositionPatient, so where it lies is unknown; export the series again")
        if plane.orientation is None:
            raise DataError(f"{name} has no ImageOrientationPatient, so its directions are unknown; export it again")
        if plane.pixel_spacing is None:
            raise DataError(f"{name} has no PixelSpacing, so sizes in mm are unknown; export the series again")
        if min(plane.pixel_spacing) <= 0:
            raise DataError(f"{name} has a PixelSpacing that is not positive; export the series again")
        if min(plane.shape) < 1:
            raise DataError(f"{name} has no Rows or Columns; export the series again")
        row, column = np.asarray(plane.orientation[:3]), np.asarray(plane.orientation[3:])
        lengths = np.linalg.norm([row, column], axis=1)
        if np.abs(lengths - 1).max() > 1e-2 or abs(row @ column) > 1e-2:
            raise DataError(f"{name} has an ImageOrientationPatient that is no pair of perpendicular directions")


def _check_alike(
    slices: Sequence[Slice], value: Callable[[Slice], tuple[float, ...]], tolerance: float, *, what: str, many: str
) -> None:
    """Refuse the first slice whose value is not the one that most slices have."""
    values = [value(plane) for plane in slices]
    usual = np.asarray(Counter(values).most_common(1)[0][0])
    odd = [index for index, entries in enumerate(values) if np.abs(usual - entries).max() > tolerance]
    if len(odd) >= len(slices) / 2:
        raise DataError(f"slices of several {many} in one series; export each stack as a series of its own")
    if odd:
        name, entries = slice_name(slices[odd[0]]), values[odd[0]]
        raise DataError(f"{name} {what.format(*entries)} than the others; remove it, or export it as its own series")


def _shape(plane: Slice) -> tuple[float, ...]:
    return plane.shape


def _spacing(plane: Slice) -> tuple[float, ...]:
    return plane.pixel_spacing or ()


def _direction(plane: Slice) -> tuple[float, ...]:
    return plane.orientation or ()


def _check_gaps(ordered: Sequence[Slice], heights: NDArray[np.float64]) -> None:
    """Refuse slices at one place, and gaps of whole slices."""
    gaps = np.diff(heights)
    double = np.flatnonzero(gaps < SAME_PLACE_MM)
    if double.size:
        first = int(double[0])
        names = f"{slice_name(ordered[first])} and {slice_name(ordered[first + 1])}"
        if double.size > len(ordered) / 4:
            raise DataError(
                f"several volumes in one series ({names} lie at one place, as do {double.size - 1} more pairs), such "
                "as phases or echoes; export each as a series of its own"
            )
        raise DataError(f"{names} lie at one place; remove the double, or export the volumes as series of their own")
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    wide = np.flatnonzero(gaps > GAP * usual)
    if wide.size:
        first = int(wide[0])
        spacings = float(gaps[first]) / usual
        between = f"between {slice_name(ordered[first])} and {slice_name(ordered[first + 1])}"
        if abs(spacings - round(spacings)) < 0.15:
            missing = round(spacings) - 1
            raise DataError(
                f"{missing} {'slice is' if missing == 1 else 'slices are'} missing {between} "
                f"({gaps[first]:.4g} mm where {usual:.4g} mm are usual); copy the series again"
            )
        raise DataError(
            f"unevenly spaced: {gaps[first]:.4g} mm {between}, {usual:.4g} mm elsewhere; export it with even spacing"
        )


def _check_even(ordered: Sequence[Slice], heights: NDArray[np.float64]) -> tuple[str, ...]:
    """Refuse slices off their even places; a warning where rounding alone cannot explain the distance."""
    even = np.linspace(heights[0], heights[-1], len(heights))
    step = float(even[1] - even[0])
    distances = np.abs(heights - even)
    worst = int(distances.argmax())
    if distances[worst] > max(EVEN * step, EVEN_MM):
        raise DataError(
            f"unevenly spaced: {slice_name(ordered[worst])} lies {distances[worst]:.3g} mm from where even spacing of "
            f"{step:.4g} mm would place it; export it with even spacing"
        )
    if distances[worst] > max(0.01 * step, SAME_PLACE_MM):
        return (f"slices lie up to {distances[worst]:.2g} mm from even spacing",)
    return ()


def _check_tilt(ordered: Sequence[Slice], corners: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Refuse slices that are shifted sideways, by the same amount each (gantry tilt) or not."""
    step = (corners[-1] - corners[0]) / (len(corners) - 1)
    line = corners[0] + np.arange(len(corners))[:, None] * step
    off = corners - line
    sideways = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if sideways.max() > SIDEWAYS_MM:
        raise DataError(
            f"{slice_name(ordered[int(sideways.argmax())])} is shifted sideways by {sideways.max():.3g} mm against the "
            "others; export the series again"
        )
    upwards = float(step @ normal)
    shift = float(np.linalg.norm(step - upwards * normal))
    tilt = float(np.degrees(np.arctan2(shift, upwards)))
    if tilt > MOST_TILT_DEGREES and shift * (len(corners) - 1) > SIDEWAYS_MM:
        raise DataError(
            f"gantry tilt of {tilt:.1f} degrees: each slice is shifted against the next, and a network would see a "
            "sheared patient; resample it upright first (3D Slicer: Acquisition geometry regularization)"
        )
