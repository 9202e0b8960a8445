"""Files that are whole or absent: written aside, checked, then renamed onto their name."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import DataError

SCANNER_SPACE = 1  # NIfTI code of sform and qform: scanner-based anatomical millimeters
SHEAR_TOLERANCE = 1e-4


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """Temporary path beside `path` to write to; renamed onto `path` when the block ends well, else removed.

    The temporary name ends like `path`'s, so that writers which look at the suffix behave; it starts with a dot, so
    that readers of the folder skip it. Missing folders are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid4().hex[:8]}-{target.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows syncs only files open for writing
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_nifti(voxels: NDArray[np.generic], affine: ArrayLike, path: str | Path) -> None:
    """Write a scan or label map as NIfTI (`.nii.gz` or `.nii`), whole and read back, or not at all.

    The header is fresh: nothing but shape, voxel type and geometry goes into the file. sform and qform say scanner
    space in mm; a sheared affine, which a quaternion cannot hold, goes into the sform alone. Equal input gives equal
    bytes.

    Args:
        voxels: `(X, Y, Z)` or `(X, Y, Z, C)`, of a type that NIfTI has.
        affine: `(4, 4)`, voxel index to RAS mm; NIfTI keeps it in float32.
        path: where to write; an older file is replaced.

    Raises:
        DataError: if the file cannot be written or does not read back as it was.
    """
    target = Path(path)
    voxels = np.asfortranarray(voxels)  # the order on disk: one copy here makes saving and comparing 4x as fast
    image = nib.Nifti1Image(voxels, None)
    grid = np.asarray(affine, dtype=np.float64)
    image.set_sform(grid, code=SCANNER_SPACE)
    image.set_qform(grid, code=0 if _is_sheared(grid) else SCANNER_SPACE)
    image.header.set_xyzt_units(xyz="mm")
    try:
        with aside(target) as temporary:
            nib.save(image, temporary)
            if not _reads_back(temporary, voxels, grid):
                raise DataError(
                    f"{target.name}: reads back differently than written; check the disk, then run it again"
                )
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{target.name}: cannot be written ({reason}); free space or choose another folder") from error


def write_mask_png(label: NDArray[np.uint8], path: str | Path) -> None:
    """Write the label map of a 2D image as a gray PNG whose values are the labels, whole and read back, or not at all.

    Args:
        label: `(X, Y, 1)`, columns along X and rows along Y.
        path: where to write; an older file is replaced.

    Raises:
        DataError: if the file cannot be written or does not read back as it was.
    """
    from PIL import Image  # most label maps are of scans

    target, pixels = Path(path), np.ascontiguousarray(label[:, :, 0].T)
    try:
        with aside(target) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
            with Image.open(temporary) as written:
                same = np.array_equal(np.asarray(written), pixels)
            if not same:
                raise DataError(
                    f"{target.name}: reads back differently than written; check the disk, then run it again"
                )
    except (OSError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{target.name}: cannot be written ({reason}); free space or choose another folder") from error


def _is_sheared(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return not np.allclose(axes.T @ axes, np.eye(3), atol=SHEAR_TOLERANCE)


def _reads_back(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> bool:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)  # to the trailer, so that its checksum counts
    image = nib.Nifti1Image.from_bytes(content)
    stored = np.asanyarray(image.dataobj)
    return bool(
        stored.shape == voxels.shape
        and stored.dtype == voxels.dtype.newbyteorder("=")
        and np.array_equal(image.affine, affine.astype(np.float32))
        and np.array_equal(stored, voxels, equal_nan=voxels.dtype.kind == "f")
    )
