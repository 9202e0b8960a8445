"""NRRD and MetaImage (`.nrrd`, `.mha`, `.mhd`) through SimpleITK, which lets bad checksums and missing grids pass."""

import zlib
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name its own manual uses)
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.scan import Scan, checked_affine, compact_voxels, damaged

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
METAIMAGE_GRID = (  # the fields that place the voxels, each with its older names
    ("ElementSpacing",),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("Offset", "Position", "Origin"),
)
NRRD_GRID = ("space", "space directions", "space origin")
MOST_HEADER_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20
ZLIB_OR_GZIP = 47  # zlib: largest window, either wrapper


@dataclass(frozen=True)
class _Header:
    """Where an NRRD or MetaImage file has its voxels."""

    voxel_file: Path
    offset: int
    compressed: bool


def read_itk(path: Path) -> Scan:
    """Scan in an NRRD or MetaImage file; its voxels keep all axes of the file (at least three).

    Raises:
        DataError: if the file is damaged or cut short, or holds no scan with a sound grid; see `medseg.reading`.
    """
    header = _read_header(path)
    if header.compressed:
        _check_stream(header, path.name)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise damaged(path, error) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(f"{path.name}: voxels are colors or vectors, not one real number each; export a plain scan")
    shape, affine = _grid(image, path.name)
    voxels = sitk.GetArrayFromImage(image).T.reshape(shape, order="F")
    return Scan(compact_voxels(voxels, path.name), affine)


def read_itk_grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine from the header alone."""
    _read_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise damaged(path, error) from error
    return _grid(reader, path.name)


def _grid(image: sitk.Image | sitk.ImageFileReader, name: str) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    shape = tuple(int(length) for length in image.GetSize())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        return shape, np.eye(4)  # refused by the caller, who says what is wanted instead
    axes = len(image.GetSize())
    direction = np.asarray(image.GetDirection(), dtype=np.float64).reshape(axes, axes)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = image.GetOrigin()[:3]
    return shape, checked_affine(LPS_TO_RAS @ affine, name)


def _read_header(path: Path) -> _Header:
    """The header's fields, refused where SimpleITK would fill in a geometry of its own."""
    try:
        with path.open("rb") as file:
            start = file.read(MOST_HEADER_BYTES)
    except OSError as error:
        raise damaged(path, error) from error
    header = _nrrd_header(start, path) if path.suffix.lower() == ".nrrd" else _metaimage_header(start, path)
    if not header.voxel_file.is_file():
        raise DataError(f"{path.name}: its voxel file {header.voxel_file.name} is missing; put it beside the header")
    return header


def _nrrd_header(start: bytes, path: Path) -> _Header:
    blank_line = b"\r\n\r\n" if start.partition(b"\n")[0].endswith(b"\r") else b"\n\n"
    text = start.partition(blank_line)[0]
    if not start.startswith(b"NRRD"):
        raise DataError(f"{path.name}: not an NRRD file; copy or export it again")
    fields = _fields(text, ":")
    for key in NRRD_GRID:
        if key not in fields:
            raise DataError(f"{path.name}: no '{key}' in the header, so the grid is unknown; export the scan again")
    units = set(fields.get("space units", "mm").replace('"', "").split())
    if not units <= {"mm", "millimeter", "millimeters"}:
        raise DataError(f"{path.name}: lengths are in {' '.join(sorted(units))}; export the scan again in mm")
    detached = fields.get("data file", fields.get("datafile"))
    offset = 0 if detached else len(text) + len(blank_line)
    voxel_file = path.with_name(Path(detached).name) if detached else path
    return _Header(voxel_file, offset, fields.get("encoding", "raw").lower() in ("gzip", "gz"))


def _metaimage_header(start: bytes, path: Path) -> _Header:
    before, found, rest = start.partition(b"ElementDataFile")
    if not found:
        raise DataError(f"{path.name}: not a MetaImage file; copy or export it again")
    last_line = rest.partition(b"\n")[0]
    fields = _fields(before, "=")
    for key, *names in METAIMAGE_GRID:
        given = next((fields[name.lower()] for name in (key, *names) if name.lower() in fields), None)
        if given is None:
            raise DataError(f"{path.name}: no '{key}' in the header, so the grid is unknown; export the scan again")
        if not _are_sound(given, positive=key == "ElementSpacing"):
            raise DataError(f"{path.name}: '{key} = {given}' in the header is no grid; export the scan again")
    target = last_line.decode("latin-1").strip(" =\t\r")
    local = target.upper() == "LOCAL"
    return _Header(
        path if local else path.with_name(Path(target).name),
        len(before) + len(found) + len(last_line) + 1 if local else 0,
        fields.get("compresseddata", "false").lower() == "true",
    )


def _are_sound(numbers: str, *, positive: bool) -> bool:
    """Whether a header's numbers are finite: SimpleITK reads others as 0, and a negative spacing as a flip."""
    try:
        values = [float(number) for number in numbers.split()]
    except ValueError:
        return False
    return all(isfinite(value) and (value > 0 or not positive) for value in values)


def _fields(text: bytes, separator: str) -> dict[str, str]:
    lines = (line.partition(separator) for line in text.decode("latin-1").splitlines() if not line.startswith("#"))
    return {key.strip().lower(): value.strip(" \t=") for key, found, value in lines if found}


def _check_stream(header: _Header, name: str) -> None:
    """Decompress once to the end: SimpleITK accepts a flipped bit in a compressed MetaImage."""
    decoder = zlib.decompressobj(ZLIB_OR_GZIP)
    try:
        with header.voxel_file.open("rb") as file:
            file.seek(header.offset)
            while not decoder.eof and (chunk := file.read(CHUNK_BYTES)):
                decoder.decompress(chunk)
    except zlib.error as error:
        raise DataError(f"{name}: damaged ({error}); copy or export it again") from error
    if not decoder.eof:
        raise DataError(f"{name}: cut short: its compressed voxels have no end; copy or export it again")
