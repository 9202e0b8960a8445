"""NIfTI-1 and NIfTI-2 in one file (`.nii`, `.nii.gz`), read to the gzip trailer so that its checksum counts."""

import gzip
import zlib
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.geometry import spacing_mm
from medseg.reading.scan import Scan, checked_affine, compact_voxels, damaged

HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by their size in bytes, the first number in the file
EXTENSION_FLAG_BYTES = 4
MAGIC = (b"n+1", b"n+2")
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # 0: not said, by common use mm
UNIT_NAMES = {1: "meters", 3: "micrometers"}
MOST_GZIP_SHRINKS = 1032  # deflate cannot do better; a header that promises more lies
MOST_BYTES_AFTER = 1 << 20
PIECE_BYTES = 1 << 22
SPACING_TOLERANCE = 0.01


@dataclass(frozen=True)
class _Header:
    """What a NIfTI header says of the voxels that follow."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    voxel_type: np.dtype[np.generic]
    offset: int
    slope: float
    intercept: float
    warnings: tuple[str, ...]


def read_nifti(path: Path) -> Scan:
    """Scan in a NIfTI file; its voxels keep all axes of the file (at least three).

    Raises:
        DataError: if the file is damaged or cut short, or holds no scan with a sound grid; see `medseg.reading`.
    """
    try:
        with _open(path) as stream:
            header, already = _read_header(stream, path.name)
            voxels, warnings = _read_voxels(stream, header, already, path)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    voxels = compact_voxels(voxels, path.name, slope=header.slope, intercept=header.intercept)
    return Scan(voxels, header.affine, header.warnings + warnings)


def read_nifti_grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine from the header alone."""
    try:
        with _open(path) as stream:
            header, _ = _read_header(stream, path.name)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    return header.shape, header.affine


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_header(stream: BufferedIOBase, name: str) -> tuple[_Header, int]:
    """The header and how many bytes of the stream it took."""
    block = stream.read(348)
    size = next((size for size in HEADERS for order in "<>" if block[:4] == np.array(size, order + "i4").tobytes()), 0)
    block += stream.read(max(size, 348) - 348)
    if not size or len(block) < size:
        raise DataError(f"{name}: not a NIfTI file, or cut short in its header; copy or export it again")
    header = HEADERS[size](block, check=False)
    if header["magic"].item()[:3] not in MAGIC:
        raise DataError(f"{name}: header and voxels are in two files or it is no NIfTI; convert it to one .nii.gz")
    try:
        return _interpret(header, name), size
    except (HeaderDataError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: bad NIfTI header ({error}); export the scan again") from error


def _interpret(header: nib.Nifti1Header, name: str) -> _Header:
    shape = tuple(int(length) for length in header.get_data_shape())
    if min(shape, default=0) < 1:
        raise DataError(f"{name}: the header declares a grid of {shape} voxels; export the scan again")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    offset = int(header["vox_offset"])
    smallest = header.sizeof_hdr + EXTENSION_FLAG_BYTES
    if offset < smallest:
        raise DataError(f"{name}: voxels start at byte {offset}, inside the header; export the scan again")
    slope, intercept = header.get_slope_inter()
    affine, warnings = _affine(header, name)
    return _Header(
        shape,
        affine,
        _voxel_type(header, name),
        offset,
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        warnings,
    )


def _voxel_type(header: nib.Nifti1Header, name: str) -> np.dtype[np.generic]:
    try:
        return header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise DataError(f"{name}: unknown voxel type {int(header['datatype'])}; export the scan again") from error


def _affine(header: nib.Nifti1Header, name: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The sform, else the qform, in mm; with neither, left and right would be guessed."""
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # the standard reads 0 as 1
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        raise DataError(f"{name}: no orientation in the header (sform and qform codes are 0); export the scan again")
    affine = checked_affine(header.get_sform() if codes[0] > 0 else header.get_qform(), name)
    stored = tuple(float(length) for length in header["pixdim"][1:4])
    if not np.allclose(stored, spacing_mm(affine), rtol=SPACING_TOLERANCE):
        raise DataError(
            f"{name}: two voxel sizes in one header, {_lengths(stored)} (pixdim) and {_lengths(spacing_mm(affine))} "
            "(sform); correct the wrong one"
        )
    warnings = []
    if min(codes) > 0 and not np.allclose(header.get_qform(), affine, rtol=0, atol=SPACING_TOLERANCE * max(stored)):
        warnings.append("sform and qform place the scan differently; the sform was used")
    unit = int(header["xyzt_units"]) & 7
    if unit not in MM_PER_UNIT:
        raise DataError(f"{name}: unknown unit of length {unit} in the header; export the scan again in mm")
    if unit in UNIT_NAMES:
        warnings.append(f"lengths are stored in {UNIT_NAMES[unit]}; converted to mm")
    affine[:3] *= MM_PER_UNIT[unit]
    return affine, tuple(warnings)


def _read_voxels(
    stream: BufferedIOBase, header: _Header, already: int, path: Path
) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Voxels `header.shape` in native byte order, the stream read to its end."""
    count = int(np.prod(header.shape, dtype=object))
    expected = header.offset + count * header.voxel_type.itemsize
    on_disk = path.stat().st_size
    if expected > on_disk * (MOST_GZIP_SHRINKS if path.suffix.lower() == ".gz" else 1):
        raise DataError(
            f"{path.name}: cut short: {on_disk} bytes cannot hold the {header.shape} voxels that the header declares; "
            "copy or export it again"
        )
    stream.read(header.offset - already)
    voxels = np.empty(count, dtype=header.voxel_type)
    received = _fill(voxels.view(np.uint8).data, stream)
    if received < voxels.nbytes:
        raise DataError(f"{path.name}: cut short: {received} of {voxels.nbytes} voxel bytes; copy or export it again")
    after = len(stream.read(MOST_BYTES_AFTER + 1))  # also takes the gzip stream to its trailer
    if after > MOST_BYTES_AFTER:
        raise DataError(f"{path.name}: more voxels than the header's {header.shape}; export the scan again")
    if not voxels.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(voxels.dtype.newbyteorder("="))
    warnings = (f"{after} bytes after the voxels were ignored",) if after else ()
    return voxels.reshape(header.shape, order="F"), warnings


def _fill(target: memoryview, stream: BufferedIOBase) -> int:
    """How many bytes the stream had for `target`; by pieces, since gzip holds each piece twice."""
    received = 0
    while received < len(target) and (step := stream.readinto(target[received : received + PIECE_BYTES])):
        received += step
    return received


def _lengths(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{length:.4g}" for length in spacing)
