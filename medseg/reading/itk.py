"""Headers of NRRD and MetaImage (`.nrrd`, `.nhdr`, `.mha`, `.mhd`).

SimpleITK interprets the grid. It lets bad checksums, missing grids and unknown spaces pass and fills a cut file with
zeros, so those are refused here, and voxels are read by `medseg.reading.stored`.
"""

from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name its own manual uses)
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.grid import checked_affine, grid_warnings
from medseg.reading.scan import damaged
from medseg.reading.stored import Stored
from medseg.reading.stream import Compression

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOXEL_TYPES = {
    sitk.sitkInt8: np.int8, sitk.sitkInt16: np.int16, sitk.sitkInt32: np.int32, sitk.sitkInt64: np.int64,
    sitk.sitkUInt8: np.uint8, sitk.sitkUInt16: np.uint16, sitk.sitkUInt32: np.uint32, sitk.sitkUInt64: np.uint64,
    sitk.sitkFloat32: np.float32, sitk.sitkFloat64: np.float64,
}  # fmt: skip
METAIMAGE_GRID = (  # the fields that place the voxels, each with its older names
    ("ElementSpacing",),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("Offset", "Position", "Origin"),
)
METAIMAGE_BYTE_ORDER = ("elementbyteordermsb", "binarydatabyteordermsb")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
NRRD_GRID = ("space", "space directions", "space origin")
NRRD_SPACES = {"ras", "las", "lps", "right-anterior-superior", "left-anterior-superior", "left-posterior-superior"}
NRRD_ENCODINGS: dict[str, Compression] = {"raw": "", "gzip": "gzip", "gz": "gzip"}
MM_PER_UNIT = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "\N{MICRO SIGN}m": 0.001,
    "?": 1.0,  # what MetaImage writes where nothing was said
}  # fmt: skip
MOST_HEADER_BYTES = 1 << 16

Fields = dict[str, str]


def stored_itk(path: Path) -> Stored:
    """The voxels that an NRRD or MetaImage file declares, judged by the header alone.

    Raises:
        DataError: if the header is missing or damaged, or declares no sound grid; see docs/reading.md.
    """
    try:
        with path.open("rb") as file:
            start = file.read(MOST_HEADER_BYTES)
    except OSError as error:
        raise damaged(path, error) from error
    is_nrrd = path.name.lower().endswith(NRRD_SUFFIXES)
    fields, first_voxel = _nrrd_fields(start, path.name) if is_nrrd else _metaimage_fields(start, path.name)
    voxel_file = path if first_voxel else path.with_name(Path(fields["data file"]).name)
    if not voxel_file.is_file():
        raise DataError(f"{path.name}: its voxel file {voxel_file.name} is missing; put it beside the header")
    compression = _compression(fields, path.name, is_nrrd=is_nrrd)
    shape, affine, voxel_type = _declared(path, fields)
    stored = Stored(
        path,
        _without_trailing_ones(shape),
        affine,
        voxel_type,
        voxel_file,
        start=first_voxel,
        compression=compression,
        warnings=_unit_warnings(fields) + (grid_warnings(shape, affine, path.name) if len(shape) >= 3 else ()),
    )
    return stored if first_voxel else _after_foreign_header(stored, fields)


def _declared(path: Path, fields: Fields) -> tuple[tuple[int, ...], NDArray[np.float64], np.dtype[np.generic]]:
    """Shape, affine in mm and voxel type with its byte order."""
    name = path.name
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise damaged(path, error) from error
    if reader.GetNumberOfComponents() > 1:
        raise DataError(f"{name}: voxels are colors or vectors, not one real number each; export a plain scan")
    plain = VOXEL_TYPES.get(reader.GetPixelIDValue())
    if plain is None:
        raise DataError(f"{name}: voxels are {reader.GetPixelIDTypeAsString()}; export a plain scan")
    shape = tuple(int(length) for length in reader.GetSize())
    if min(shape, default=0) < 1 or [str(length) for length in shape] != fields["sizes"].split():
        raise DataError(f"{name}: the header declares a grid of ({fields['sizes']}) voxels; export the scan again")
    voxel_type = np.dtype(plain).newbyteorder(">" if fields["endian"] == "big" else "<")
    if len(shape) < 3:
        return shape, np.eye(4), voxel_type  # refused by the caller, who says what is wanted instead
    direction = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(len(shape), len(shape))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine[:3] *= _mm_per_unit(fields, name)
    return shape, checked_affine(LPS_TO_RAS @ affine, name), voxel_type


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _nrrd_fields(start: bytes, name: str) -> tuple[Fields, int]:
    """The header's fields, and at which byte the voxels follow; 0 where they are in another file."""
    blank_line = b"\r\n\r\n" if start.partition(b"\n")[0].endswith(b"\r") else b"\n\n"
    text, _, _ = start.partition(blank_line)
    if not start.startswith(b"NRRD"):
        raise DataError(f"{name}: not an NRRD file; copy or export it again")
    fields = {"sizes": "", "endian": "little", **_fields(text, ":")}
    for key in NRRD_GRID:
        if key not in fields:
            raise DataError(f"{name}: no '{key}' in the header, so the grid is unknown; export the scan again")
    if fields["space"].lower() not in NRRD_SPACES:
        raise DataError(f"{name}: the space {fields['space']!r} does not say where left is; export the scan again")
    if "datafile" in fields:
        fields["data file"] = fields["datafile"]
    fields["unit"] = fields.get("space units", "mm").replace('"', "")
    return fields, 0 if "data file" in fields else len(text) + len(blank_line)


def _metaimage_fields(start: bytes, name: str) -> tuple[Fields, int]:
    """As `_nrrd_fields`, under the names that NRRD has for them."""
    before, found, rest = start.partition(b"ElementDataFile")
    if not found:
        raise DataError(f"{name}: not a MetaImage file; copy or export it again")
    last_line = rest.partition(b"\n")[0]
    fields = _fields(before, "=")
    for key, *names in METAIMAGE_GRID:
        given = next((fields[each.lower()] for each in (key, *names) if each.lower() in fields), None)
        if given is None:
            raise DataError(f"{name}: no '{key}' in the header, so the grid is unknown; export the scan again")
        if not _are_sound(given, positive=key == "ElementSpacing"):
            raise DataError(f"{name}: '{key} = {given}' in the header is no grid; export the scan again")
    fields["sizes"] = fields.get("dimsize", "")
    is_big = any(fields.get(key, "").lower() in ("true", "1") for key in METAIMAGE_BYTE_ORDER)
    fields["endian"] = "big" if is_big else "little"
    fields["unit"] = fields.get("distanceunits", "mm")
    fields["data file"] = last_line.decode("latin-1").strip(" =\t\r")
    local = fields["data file"].upper() == "LOCAL"
    return fields, len(before) + len(found) + len(last_line) + 1 if local else 0


def _compression(fields: Fields, name: str, *, is_nrrd: bool) -> Compression:
    if not is_nrrd:
        if fields.get("binarydata", "true").lower() not in ("true", "1"):
            raise DataError(f"{name}: voxels are written as text; export it as binary")
        return "zlib" if fields.get("compresseddata", "false").lower() in ("true", "1") else ""
    encoding = fields.get("encoding", "raw").lower()
    if encoding not in NRRD_ENCODINGS:
        raise DataError(f"{name}: the encoding {encoding!r} is not read; export it raw or with gzip")
    return NRRD_ENCODINGS[encoding]


def _after_foreign_header(stored: Stored, fields: Fields) -> Stored:
    """Voxels in a file of their own, which may begin with another program's header."""
    skipped = next((fields[key] for key in ("headersize", "byte skip", "byteskip") if key in fields), "0")
    lines = next((fields[key] for key in ("line skip", "lineskip") if key in fields), "0")
    if skipped == "-1" and not stored.compression:
        return replace(stored, start=max(stored.voxel_file.stat().st_size - stored.bytes, 0))
    if not skipped.isdecimal() or lines != "0" or (skipped != "0" and stored.compression):
        raise DataError(f"{stored.path.name}: where its voxels begin is told in a way not read; export one file")
    return replace(stored, start=int(skipped))


def _mm_per_unit(fields: Fields, name: str) -> float:
    units = set(fields["unit"].split())
    if len(units) != 1 or not units <= MM_PER_UNIT.keys():
        raise DataError(f"{name}: lengths are in {' '.join(sorted(units))}; export the scan again in mm")
    return MM_PER_UNIT[units.pop()]


def _unit_warnings(fields: Fields) -> tuple[str, ...]:
    unit = fields["unit"].split()[0]
    return (f"lengths are stored in {unit}; converted to mm",) if MM_PER_UNIT[unit] != 1 else ()


def _are_sound(numbers: str, *, positive: bool) -> bool:
    """Whether a header's numbers are finite: SimpleITK reads others as 0, and a negative spacing as a flip."""
    try:
        values = [float(number) for number in numbers.split()]
    except ValueError:
        return False
    return all(isfinite(value) and (value > 0 or not positive) for value in values)


def _fields(text: bytes, separator: str) -> Fields:
    lines = (line.partition(separator) for line in text.decode("latin-1").splitlines() if not line.startswith("#"))
    return {key.strip().lower(): value.strip(" \t=") for key, found, value in lines if found}
