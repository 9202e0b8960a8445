"""Headers of NRRD (`.nrrd`, and `.nhdr` with the voxels beside it).

Reference:
    "Definition of NRRD File Format", https://teem.sourceforge.net/nrrd/format.html
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.grid import checked_affine, grid_warnings
from medseg.reading.stored import Stored
from medseg.reading.stream import Compression
from medseg.reading.text_headers import (
    Fields,
    after_foreign_header,
    axis_lengths,
    header_fields,
    header_start,
    numbers,
    unit_of_length,
    voxel_file_beside,
    without_trailing_ones,
)

GRID = ("space", "space directions", "space origin")
TO_RAS = {  # of each space in which left is known
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
ENCODINGS: dict[str, Compression] = {"raw": "", "gzip": "gzip", "gz": "gzip"}
VOXEL_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
BYTE_ORDERS = {"little": "<", "big": ">"}


def stored_nrrd(path: Path) -> Stored:
    """The voxels that an NRRD file declares, judged by the header alone.

    Raises:
        DataError: if the header is missing or damaged, or declares no sound grid; see docs/reading.md.
    """
    name = path.name
    start = header_start(path)
    if not start.startswith(b"NRRD"):
        raise DataError(f"{name}: not an NRRD file; copy or export it again")
    blank_line = b"\r\n\r\n" if start.partition(b"\n")[0].endswith(b"\r") else b"\n\n"
    text, _, _ = start.partition(blank_line)
    fields = header_fields(text, ":")
    for key in GRID:
        if key not in fields:
            raise DataError(f"{name}: no '{key}' in the header, so the grid is unknown; export the scan again")
    target = fields.get("data file", fields.get("datafile"))
    mm, warnings = unit_of_length(fields.get("space units", "mm").replace('"', ""), name)
    shape = axis_lengths(fields.get("sizes", ""), name)
    affine = np.eye(4)
    if len(shape) >= 3:
        affine = checked_affine(_affine(fields, len(shape), name) * np.array([[mm]] * 3 + [[1.0]]), name)
        warnings += grid_warnings(shape, affine, name)
    stored = Stored(
        path,
        without_trailing_ones(shape),
        affine,
        _voxel_type(fields, name),
        path if target is None else voxel_file_beside(path, target),
        start=len(text) + len(blank_line) if target is None else 0,
        compression=_compression(fields, name),
        warnings=warnings,
    )
    if fields.get("line skip", fields.get("lineskip", "0")) != "0":
        raise DataError(f"{name}: where its voxels begin is told in a way not read; export one file")
    return (
        stored if target is None else after_foreign_header(stored, fields.get("byte skip", fields.get("byteskip", "0")))
    )


def _affine(fields: Fields, axes: int, name: str) -> NDArray[np.float64]:
    """In the header's unit, to RAS; the fourth axis, if there is one, has no direction."""
    space = fields["space"].lower()
    if space not in TO_RAS:
        raise DataError(f"{name}: the space {fields['space']!r} does not say where left is; export the scan again")
    vectors = re.findall(r"\([^)]*\)|none", fields["space directions"])
    if len(vectors) != axes or "none" in vectors[:3]:
        raise DataError(f"{name}: voxels are colors or vectors, not one real number each; export a plain scan")
    affine = np.eye(4)
    for axis, vector in enumerate(vectors[:3]):
        affine[:3, axis] = _vector(vector, "space directions", name)
    affine[:3, 3] = _vector(fields["space origin"], "space origin", name)
    return np.diag([*TO_RAS[space], 1.0]) @ affine


def _vector(text: str, key: str, name: str) -> NDArray[np.float64]:
    return numbers(text.strip("() ").replace(",", " "), key, name, count=3)


def _voxel_type(fields: Fields, name: str) -> np.dtype[np.generic]:
    given = fields.get("type", "")
    code = next((code for code, names in VOXEL_TYPES.items() if given.lower() in names), None)
    if code is None:
        raise DataError(f"{name}: unknown voxel type {given!r}; export the scan again")
    order = "<" if code[1] == "1" else BYTE_ORDERS.get(fields.get("endian", "").lower())
    if order is None:
        raise DataError(f"{name}: the byte order of its voxels is not said; export the scan again")
    return np.dtype(order + code)


def _compression(fields: Fields, name: str) -> Compression:
    encoding = fields.get("encoding", "").lower()
    if encoding not in ENCODINGS:
        raise DataError(f"{name}: the encoding {encoding!r} is not read; export it raw or with gzip")
    return ENCODINGS[encoding]
