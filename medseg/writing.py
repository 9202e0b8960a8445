"""Files that are whole or absent: written aside, checked, then renamed onto their name."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import ArrayLike, NDArray

from medseg.errors import DataError
from medseg.nifti_header import header_bytes

FAST = 1  # isal's level: nine times as fast as zlib's level 6 on labels, and about as small
PIECE_BYTES = 1 << 20
RENAME_TRIES, RENAME_WAIT_S = 20, 0.25  # five seconds for a viewer to let go of the file
MB = 1 << 20
# of what was written and does not read back (isal's stubs take the class for an instance)
READ_BACK_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, igzip_lib.IsalError)  # type: ignore[assignment]


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """Temporary path beside `path` to write to; renamed onto `path` when the block ends well, else removed.

    The temporary name ends like `path`'s, so that writers which look at the suffix behave; it starts with a dot, so
    that readers of the folder skip it. Missing folders are made. Where a viewer holds `path` (Windows), the rename is
    tried for some seconds.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid4().hex[:8]}-{target.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows syncs only files open for writing
            os.fsync(file.fileno())
        _rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def free_mb(folder: str | Path) -> int:
    """Free disk space where `folder` is or will be made, in MB.

    Raises:
        DataError: if no such disk can be asked.
    """
    place = Path(folder).absolute()
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free // MB
    except OSError as error:
        raise DataError(f"{Path(folder).name}: its disk cannot be asked ({error.strerror}); check the path") from error


def write_nifti(voxels: NDArray[np.generic], affine: ArrayLike, path: str | Path, *, description: str = "") -> None:
    """Write a scan or label map as NIfTI (`.nii.gz` or `.nii`), whole and read back, or not at all.

    The header is fresh: nothing but shape, voxel type, geometry and `description` goes into the file. sform and qform
    say scanner space in mm; a sheared affine, which a quaternion cannot hold, goes into the sform alone. Equal input
    gives equal bytes (with one version of isal).

    Args:
        voxels: `(X, Y, Z)` or `(X, Y, Z, C)`, of a type that NIfTI has.
        affine: `(4, 4)`, voxel index to RAS mm; NIfTI keeps it in float32.
        path: where to write; an older file is replaced.
        description: what the values are, up to 79 letters of ASCII.

    Raises:
        DataError: if the file cannot be written or does not read back as it was.
    """
    target = Path(path)
    try:
        header = header_bytes(voxels.shape, voxels.dtype, np.asarray(affine, dtype=np.float64), description=description)
    except ValueError as error:
        raise DataError(f"{target.name}: NIfTI cannot hold it ({error}); write whole numbers or float32") from error
    content = (header, _bytes_on_disk(voxels))
    compressed = target.name.lower().endswith(".gz")
    try:
        with aside(target) as temporary:
            _write(content, temporary, compressed=compressed)
            if not _reads_back(content, temporary, compressed=compressed):
                raise DataError(
                    f"{target.name}: reads back differently than written; check the disk, then run it again"
                )
    except READ_BACK_ERRORS as error:
        raise _cannot_be_written(target, error) from error


def write_compressed(source: Path, path: str | Path) -> None:
    """Write a file compressed (`.gz`), whole and read back, or not at all; a piece of it in memory at a time.

    Equal input gives equal bytes (with one version of isal).

    Args:
        source: an uncompressed file; stays.
        path: where to write; an older file is replaced.

    Raises:
        DataError: if the file cannot be written or does not read back as it was.
    """
    target = Path(path)
    try:
        with aside(target) as temporary:
            with (
                source.open("rb") as read,
                temporary.open("wb") as file,
                igzip.IGzipFile("", "wb", FAST, file, mtime=0) as stream,  # neither name nor time go into the file
            ):
                while piece := read.read(PIECE_BYTES):
                    stream.write(piece)
            with source.open("rb") as read, igzip.open(temporary) as stream:
                same = all(stream.read(len(piece)) == piece for piece in iter(partial(read.read, PIECE_BYTES), b""))
                same = same and not stream.read(1)
            if not same:
                raise DataError(
                    f"{target.name}: reads back differently than written; check the disk, then run it again"
                )
    except READ_BACK_ERRORS as error:
        raise _cannot_be_written(target, error) from error


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
        raise _cannot_be_written(target, error) from error


def _rename(temporary: Path, target: Path) -> None:
    for tried in range(RENAME_TRIES):
        try:
            temporary.replace(target)
        except PermissionError:
            if tried == RENAME_TRIES - 1:
                raise
            time.sleep(RENAME_WAIT_S)
        else:
            return


def _cannot_be_written(target: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{target.name}: cannot be written ({reason}); free space or choose another folder")


def _bytes_on_disk(voxels: NDArray[np.generic]) -> memoryview:
    """First axis fastest, little-endian, as the header says."""
    voxels = np.asfortranarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    return voxels.reshape(-1, order="F").view(np.uint8).data


def _write(content: tuple[bytes, memoryview], path: Path, *, compressed: bool) -> None:
    with path.open("wb") as file:
        if not compressed:
            for part in content:
                file.write(part)
            return
        with igzip.IGzipFile("", "wb", FAST, file, mtime=0) as stream:  # neither name nor time go into the file
            for part in content:
                for start in range(0, len(part), PIECE_BYTES):
                    stream.write(part[start : start + PIECE_BYTES])


def _reads_back(content: tuple[bytes, memoryview], path: Path, *, compressed: bool) -> bool:
    """Whether the file holds `content` and nothing else, to the checksum at its end."""
    with igzip.open(path) if compressed else path.open("rb") as stream:
        for part in content:
            for start in range(0, len(part), PIECE_BYTES):
                piece = part[start : start + PIECE_BYTES]
                if stream.read(len(piece)) != bytes(piece):
                    return False
        return not stream.read(1)
