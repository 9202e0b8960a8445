"""Headers of MetaImage (`.mha`, and `.mhd` with the voxels beside it).

Reference:
    "MetaIO", https://docs.itk.org/en/latest/learn/metaio.html: the rows of TransformMatrix are the directions of the
    stored axes, in a space that grows to the patient's left, posterior and superior (LPS).
"""

from pathlib import Path

import numpy as np

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

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACING, MATRIX, ORIGIN = (  # the fields that place the voxels, each with its older names
    ("ElementSpacing",),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("Offset", "Position", "Origin"),
)
VOXEL_TYPES = {
    "met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4",
    "met_long": "i4", "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8", "met_float": "f4",
    "met_double": "f8",
}  # fmt: skip
TRUE = ("true", "1", "t")
LAST_FIELD = b"ElementDataFile"


def stored_metaimage(path: Path) -> Stored:
    """The voxels that a MetaImage file declares, judged by the header alone.

    Raises:
        DataError: if the header is missing or damaged, or declares no sound grid; see docs/reading.md.
    """
    name = path.name
    before, found, rest = header_start(path).partition(LAST_FIELD)
    if not found:
        raise DataError(f"{name}: not a MetaImage file; copy or export it again")
    last_line, _, _ = rest.partition(b"\n")
    fields = header_fields(before, "=")
    target = last_line.decode("latin-1").strip(" =\t\r")
    local = target.upper() == "LOCAL"
    mm, warnings = unit_of_length(fields.get("distanceunits", "mm"), name)
    spacing, matrix, origin = (_placing(fields, keys, name) for keys in (SPACING, MATRIX, ORIGIN))
    shape = axis_lengths(fields.get("dimsize", ""), name)
    axes = len(shape)
    affine = np.eye(4)
    if axes >= 3:
        directions = numbers(matrix, MATRIX[0], name, count=axes**2).reshape(axes, axes).T
        edges = numbers(spacing, SPACING[0], name, count=axes, positive=True)
        affine[:3, :3] = (directions * edges)[:3, :3] * mm
        affine[:3, 3] = numbers(origin, ORIGIN[0], name, count=axes)[:3] * mm
        affine = checked_affine(LPS_TO_RAS @ affine, name)
        warnings += grid_warnings(shape, affine, name)
    stored = Stored(
        path,
        without_trailing_ones(shape),
        affine,
        _voxel_type(fields, name),
        path if local else voxel_file_beside(path, target),
        start=len(before) + len(found) + len(last_line) + 1 if local else 0,
        compression=_compression(fields, name),
        warnings=warnings,
    )
    return stored if local else after_foreign_header(stored, fields.get("headersize", "0"))


def _placing(fields: Fields, keys: tuple[str, ...], name: str) -> str:
    given = next((fields[key.lower()] for key in keys if key.lower() in fields), None)
    if given is None:
        raise DataError(f"{name}: no '{keys[0]}' in the header, so the grid is unknown; export the scan again")
    return given


def _voxel_type(fields: Fields, name: str) -> np.dtype[np.generic]:
    if fields.get("elementnumberofchannels", "1") != "1":
        raise DataError(f"{name}: voxels are colors or vectors, not one real number each; export a plain scan")
    given = fields.get("elementtype", "")
    if given.lower() not in VOXEL_TYPES:
        raise DataError(f"{name}: unknown voxel type {given!r}; export the scan again")
    is_big = any(fields.get(key, "").lower() in TRUE for key in ("elementbyteordermsb", "binarydatabyteordermsb"))
    return np.dtype((">" if is_big else "<") + VOXEL_TYPES[given.lower()])


def _compression(fields: Fields, name: str) -> Compression:
    if fields.get("binarydata", "true").lower() not in TRUE:
        raise DataError(f"{name}: voxels are written as text; export it as binary")
    return "zlib" if fields.get("compresseddata", "false").lower() in TRUE else ""
