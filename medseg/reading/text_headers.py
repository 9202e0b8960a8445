"""What the text headers of NRRD and MetaImage have in common: fields, numbers, units, voxels beside the header.

They are read here and not by SimpleITK: it crashes the process on some damaged headers, fills a cut file with zeros,
and lets bad checksums, missing grids and unknown spaces pass.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.scan import damaged
from medseg.reading.stored import Stored

MOST_HEADER_BYTES = 1 << 16
MM_PER_UNIT = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "\N{MICRO SIGN}m": 0.001,
    "?": 1.0,  # what MetaImage writes where nothing was said
}  # fmt: skip

Fields = Mapping[str, str]


def header_start(path: Path) -> bytes:
    """The first bytes of a file, which hold its header."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_HEADER_BYTES)
    except OSError as error:
        raise damaged(path, error) from error


def header_fields(text: bytes, separator: str) -> dict[str, str]:
    """Lines `key separator value`, keys in lower case; comments are left out."""
    lines = (line.partition(separator) for line in text.decode("latin-1").splitlines() if not line.startswith("#"))
    return {key.strip().lower(): value.strip(" \t=") for key, found, value in lines if found}


def numbers(text: str, key: str, name: str, *, count: int, positive: bool = False) -> NDArray[np.float64]:
    """`count` numbers of a field that places the voxels.

    Raises:
        DataError: if there are more or fewer, or one is not finite (or not positive where that is asked).
    """
    try:
        values = np.array([float(number) for number in text.split()])
    except ValueError:
        values = np.array([])
    if len(values) != count or not np.isfinite(values).all() or (positive and not (values > 0).all()):
        raise DataError(f"{name}: '{key} = {text}' in the header is no grid; export the scan again")
    return values


def axis_lengths(text: str, name: str) -> tuple[int, ...]:
    """Voxels along each axis.

    Raises:
        DataError: if they are no positive whole numbers.
    """
    lengths = text.split()
    if not lengths or not all(length.isdecimal() and length.isascii() and int(length) > 0 for length in lengths):
        raise DataError(f"{name}: the header declares a grid of ({text}) voxels; export the scan again")
    return tuple(int(length) for length in lengths)


def without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 4D file of one volume counts as 3D."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def unit_of_length(text: str, name: str) -> tuple[float, tuple[str, ...]]:
    """Millimeters in the unit that a header names for its axes, and the warning if that is not 1.

    Raises:
        DataError: if the unit is unknown, or not the same for all axes.
    """
    units = set(text.split())
    if len(units) != 1 or not units <= MM_PER_UNIT.keys():
        raise DataError(f"{name}: lengths are in {' '.join(sorted(units))}; export the scan again in mm")
    unit = units.pop()
    factor = MM_PER_UNIT[unit]
    return factor, (f"lengths are stored in {unit}; converted to mm",) if factor != 1 else ()


def voxel_file_beside(path: Path, name: str) -> Path:
    """The file of voxels that a header names, beside it and nowhere else.

    Raises:
        DataError: if there is none.
    """
    voxel_file = path.with_name(Path(name.replace("\\", "/")).name or "?")
    if not voxel_file.is_file():
        raise DataError(f"{path.name}: its voxel file {voxel_file.name} is missing; put it beside the header")
    return voxel_file


def after_foreign_header(stored: Stored, skipped: str) -> Stored:
    """Voxels in a file of their own, behind `skipped` bytes of another program's header ("-1": at the file's end).

    Raises:
        DataError: if that cannot be followed.
    """
    if skipped == "-1" and not stored.compression:
        return replace(stored, start=max(stored.voxel_file.stat().st_size - stored.bytes, 0))
    if not (skipped.isdecimal() and skipped.isascii()) or (skipped != "0" and stored.compression):
        raise DataError(f"{stored.path.name}: where its voxels begin is told in a way not read; export one file")
    return replace(stored, start=int(skipped))
