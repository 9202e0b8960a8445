"""Headers of NIfTI-1 and NIfTI-2, in one file (`.nii`, `.nii.gz`) or as a pair (`.hdr` and `.img`), and of Analyze 7.5.

Voxels are read by `medseg.reading.stored`, to the gzip trailer so that its checksum counts.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.geometry import orientation_code, spacing_mm
from medseg.nifti_header import (
    EXTENSION_FLAG_BYTES,
    LAST_ANALYZE_TYPE,
    NIFTI1_BYTES,
    NIFTI2_BYTES,
    ONE_FILE_MAGIC,
    PAIR_MAGIC,
    NiftiHeader,
)
from medseg.reading.analyze import analyze_grid
from medseg.reading.grid import checked_affine, grid_warnings
from medseg.reading.scan import damaged
from medseg.reading.stored import Stored
from medseg.reading.stream import STREAM_ERRORS, Compression, byte_stream

HEADER_SUFFIXES, VOXEL_SUFFIXES = (".hdr", ".hdr.gz"), (".img", ".img.gz")
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # 0: not said, by common use mm; the spacing must be plausible
UNIT_NAMES = {1: "meters", 3: "micrometers"}
SPACING_TOLERANCE = 0.01


def stored_nifti(path: Path) -> Stored:
    """The voxels that a NIfTI or Analyze file declares, judged by the header alone.

    Args:
        path: of the one file, or of either file of a pair.

    Raises:
        DataError: if the header is missing or damaged, or declares no sound grid; see docs/reading.md.
    """
    header_file, voxel_file = paired_files(path)
    try:
        with byte_stream(header_file, compression=_compression(header_file)) as stream:
            block = stream.read(NIFTI2_BYTES)
    except STREAM_ERRORS as error:
        raise damaged(path, error) from error
    if not voxel_file.is_file():
        raise DataError(f"{path.name}: its voxel file {voxel_file.name} is missing; put it beside the header")
    try:
        return _interpret(block, path, voxel_file, is_pair=header_file != voxel_file)
    except DataError:
        raise
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path.name}: bad NIfTI header ({error}); export the scan again") from error


def paired_files(path: Path) -> tuple[Path, Path]:
    """Header and voxel file of a scan: twice the path itself unless it is one of a pair."""
    lower = path.name.lower()
    for own, others in ((HEADER_SUFFIXES, VOXEL_SUFFIXES), (VOXEL_SUFFIXES, HEADER_SUFFIXES)):
        suffix = next((suffix for suffix in own if lower.endswith(suffix)), "")
        if suffix:
            upper = path.name[-len(suffix) :].isupper()
            stem = path.name[: -len(suffix)]
            twins = [path.with_name(stem + (other.upper() if upper else other)) for other in others]
            twin = next((twin for twin in twins if twin.is_file()), twins[0])
            return (path, twin) if own is HEADER_SUFFIXES else (twin, path)
    return path, path


def _compression(path: Path) -> Compression:
    return "gzip" if path.name.lower().endswith(".gz") else ""


def _interpret(block: bytes, path: Path, voxel_file: Path, *, is_pair: bool) -> Stored:
    name = path.name
    try:
        header = NiftiHeader(block)
    except ValueError as error:
        raise DataError(f"{name}: not a NIfTI file, or cut short in its header; copy or export it again") from error
    if is_pair and header.size == NIFTI1_BYTES and header.magic not in ONE_FILE_MAGIC + PAIR_MAGIC:
        return _interpret_analyze(header, path, voxel_file)
    if header.magic not in (PAIR_MAGIC if is_pair else ONE_FILE_MAGIC):
        raise DataError(f"{name}: header and voxels are in two files or it is no NIfTI; convert it to one .nii.gz")
    shape = _shape(header, name)
    offset = int(header.number("vox_offset"))
    if offset < (0 if is_pair else header.size + EXTENSION_FLAG_BYTES):
        raise DataError(f"{name}: voxels start at byte {offset}, inside the header; export the scan again")
    slope, intercept = header.slope_and_intercept
    affine, warnings = _affine(header, name)
    return Stored(
        path,
        shape,
        affine,
        _voxel_type(header, name),
        voxel_file,
        compression=_compression(voxel_file),
        offset=offset,
        slope=slope,
        intercept=intercept,
        warnings=warnings + _grid_warnings(shape, affine, name),
    )


def _interpret_analyze(header: NiftiHeader, path: Path, voxel_file: Path) -> Stored:
    name = path.name
    shape = _shape(header, name)
    affine, warning = analyze_grid(header, path)
    offset = int(header.number("vox_offset"))
    if offset < 0:
        raise DataError(f"{name}: voxels start at byte {offset}, before the file; export the scan again")
    slope = header.number("scl_slope")
    return Stored(
        path,
        shape,
        affine,
        _voxel_type(header, name, last=LAST_ANALYZE_TYPE),
        voxel_file,
        compression=_compression(voxel_file),
        offset=offset,
        slope=slope if slope and np.isfinite(slope) else 1.0,
        warnings=(warning, *_grid_warnings(shape, affine, name)),
    )


def _shape(header: NiftiHeader, name: str) -> tuple[int, ...]:
    """Voxels along each axis, without trailing axes of one volume."""
    shape = header.shape
    if min(shape, default=0) < 1:
        raise DataError(f"{name}: the header declares a grid of {shape} voxels; export the scan again")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _grid_warnings(shape: tuple[int, ...], affine: NDArray[np.float64], name: str) -> tuple[str, ...]:
    """Of 3D; what is flat is refused by the caller, who says what is wanted instead."""
    return grid_warnings(shape, affine, name) if len(shape) >= 3 else ()


def _voxel_type(header: NiftiHeader, name: str, *, last: int = np.iinfo(np.int16).max) -> np.dtype[np.generic]:
    code, voxel_type = int(header.number("datatype")), header.voxel_type
    if voxel_type is None or code > last:
        raise DataError(f"{name}: unknown voxel type {code}; export the scan again")
    return voxel_type


def _affine(header: NiftiHeader, name: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The sform, else the qform, in mm; with neither, left and right would be guessed."""
    codes = int(header.number("sform_code")), int(header.number("qform_code"))
    if max(codes) <= 0:
        raise DataError(f"{name}: no orientation in the header (sform and qform codes are 0); export the scan again")
    affine = checked_affine(header.sform if codes[0] > 0 else header.qform, name)
    stored = header.spacing
    if not np.allclose(stored, spacing_mm(affine), rtol=SPACING_TOLERANCE):
        raise DataError(
            f"{name}: two voxel sizes in one header, {_lengths(stored)} (pixdim) and {_lengths(spacing_mm(affine))} "
            "(sform); correct the wrong one"
        )
    warnings = []
    if min(codes) > 0:
        quaternion = checked_affine(header.qform, name)
        by_sform, by_qform = orientation_code(affine), orientation_code(quaternion)
        if by_sform != by_qform:
            raise DataError(
                f"{name}: two orientations in one header, {by_sform} (sform) and {by_qform} (qform); correct the wrong "
                "one"
            )
        if not np.allclose(quaternion, affine, rtol=0, atol=SPACING_TOLERANCE * max(stored)):
            warnings.append("sform and qform place the scan differently; the sform was used")
    unit = int(header.number("xyzt_units")) & 7
    if unit not in MM_PER_UNIT:
        raise DataError(f"{name}: unknown unit of length {unit} in the header; export the scan again in mm")
    if unit in UNIT_NAMES:
        warnings.append(f"lengths are stored in {UNIT_NAMES[unit]}; converted to mm")
    affine[:3] *= MM_PER_UNIT[unit]
    return affine, tuple(warnings)


def _lengths(spacing: Iterable[float]) -> str:
    return " x ".join(f"{length:.4g}" for length in spacing)
