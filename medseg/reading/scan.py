"""What reading takes and gives, and the checks that every file format shares."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.grid import checked_affine

__all__ = [
    "Header",
    "Scan",
    "ScanSource",
    "Unit",
    "checked_affine",
    "compact_voxels",
    "damaged",
    "not_real_numbers",
    "sha256_of_all",
]

INT16 = np.iinfo(np.int16)
MOST_EXACT_FLOAT32 = 2**24
Unit = Literal["mm", "px"]


@dataclass(frozen=True)
class Scan:
    """Voxels on a grid in the patient.

    Attributes:
        voxels: `(X, Y, Z)` as stored on disk, int16, uint8 or float32 (labels: any integer type); CT in HU.
        affine: `(4, 4)` float64, voxel index to RAS mm; of an image the identity, in pixels.
        warnings: what a reader of the result should know, one sentence each.
        unit: of lengths: "px" for a 2D image, which has no mm.
        sha256: hex digest of the file's bytes as they lie on disk; of several files see `sha256_of_all`.
        modality: such as "CT", where a header tells it: that of DICOM does.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]
    warnings: tuple[str, ...] = ()
    unit: Unit = "mm"
    sha256: str = ""
    modality: str = ""


@dataclass(frozen=True)
class ScanSource:
    """Where one scan lies.

    Attributes:
        path: the scan file; of a DICOM series its folder or zip.
        files: of a DICOM series its files sorted by position, as paths relative to a zip or as they lie on disk.
        series_uid: of a DICOM series; empty for a scan file.
    """

    path: Path
    files: tuple[Path, ...] = ()
    series_uid: str = ""

    @property
    def is_dicom(self) -> bool:
        """Whether this is a DICOM series, not one scan file."""
        return bool(self.series_uid or self.files)


@dataclass(frozen=True)
class Header:
    """What a scan's header says, before any voxel is read.

    Attributes:
        shape: voxels along each stored axis.
        affine: `(4, 4)` float64, voxel index to RAS mm (of an image the identity).
        voxel_type: of one voxel as stored, such as "int16".
        bytes: that the scan takes in memory once it is read, at most.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    voxel_type: str
    bytes: int


def sha256_of_all(digests: Sequence[str]) -> str:
    """One digest for several files in their order: the file's own for one, else the digest of the hex digests."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def damaged(path: Path, error: Exception) -> DataError:
    """The refusal of a file that cannot be read; says why, without the folder's name.

    What the system refuses (a share that is gone, permissions) is told from what is wrong with the file itself.
    """
    refused_by_system = getattr(error, "strerror", None)
    if refused_by_system:
        return DataError(f"{path.name}: cannot be read ({refused_by_system}); check its disk, share and permissions")
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    reason = reason.replace(str(path), path.name).strip().removeprefix("Reason: ").rstrip(".")
    return DataError(f"{path.name}: damaged or cut short ({reason}); copy or export it again")


def not_real_numbers(voxel_type: np.dtype[np.generic], name: str) -> DataError:
    """The refusal of voxels that are colors, complex numbers or the like."""
    kind = "complex numbers" if voxel_type.kind == "c" else f"of type {voxel_type}"
    kind = "colors (RGB)" if voxel_type.names else kind
    return DataError(f"{name}: voxels are {kind}, not one real number each; export a plain scan")


def compact_voxels(
    stored: NDArray[np.generic], name: str, *, slope: float = 1.0, intercept: float = 0.0
) -> NDArray[np.generic]:
    """`stored * slope + intercept` in the smallest of uint8, int16 and float32 that holds it; changes `stored`.

    Args:
        stored: voxels as on disk, of any shape and native byte order.
        name: file name, for messages.
        slope: the header's rescale slope.
        intercept: the header's rescale intercept.

    Raises:
        DataError: if voxels are no single real number each, NaN, infinite, or beyond what float32 keeps.
    """
    if stored.dtype.kind not in "iuf":
        raise not_real_numbers(stored.dtype, name)
    scaled = (slope, intercept) != (1.0, 0.0)
    if stored.dtype in (np.int16, np.uint8) and not scaled:
        return stored
    low, high = (float(end) for end in (stored.min(), stored.max()))
    if not np.isfinite([low, high]).all():
        bad = sum(part.size - np.count_nonzero(np.isfinite(part)) for part in stored.T)  # by parts: little memory
        raise DataError(f"{name}: {bad} of {stored.size} voxels are NaN or infinite; repair or export the scan again")
    ends = (low * slope + intercept, high * slope + intercept)
    integers = stored.dtype.kind in "iu"
    whole = integers and float(slope).is_integer() and float(intercept).is_integer()
    if whole and min(ends) >= INT16.min and max(ends) <= INT16.max:
        return _rescaled_in_int16(stored, int(slope), int(intercept))
    if integers and max(-low, high) > MOST_EXACT_FLOAT32:
        raise DataError(
            f"{name}: whole numbers up to {max(-low, high):.0f}, more than float32 keeps exactly; export plain values"
        )
    if not np.abs((*ends, slope, intercept)).max() <= np.finfo(np.float32).max:
        raise DataError(f"{name}: voxels up to {max(ends):.3g} overflow; repair or export the scan again")
    voxels = stored.astype(np.float32, copy=False)
    if scaled:
        voxels *= np.float32(slope)
        voxels += np.float32(intercept)
    return voxels


def _rescaled_in_int16(stored: NDArray[np.generic], slope: int, intercept: int) -> NDArray[np.int16]:
    """Without wider numbers on the way: int16 counts modulo 2^16, so a result that fits is right."""
    voxels = stored.astype(np.int16, copy=False)
    if slope != 1:
        voxels *= np.array(slope & 0xFFFF, dtype=np.uint16).astype(np.int16)
    if intercept != 0:
        voxels += np.array(intercept & 0xFFFF, dtype=np.uint16).astype(np.int16)
    return voxels
