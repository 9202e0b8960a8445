"""Voxels as a header says that they are stored, and reading them: judged before a byte of them is read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.memory import scan_limit_mb
from medseg.reading.scan import Header, Scan, compact_voxels, damaged, not_real_numbers, sha256_of_all
from medseg.reading.stream import STREAM_ERRORS, Compression, byte_stream, file_sha256

MOST_DEFLATE_SHRINKS = 1032  # it cannot do better; a header that promises more lies
MOST_BYTES_BEFORE = 1 << 28  # header and extensions of inflated NIfTI; more is no header
MOST_BYTES_AFTER = 1 << 20
MB = 1 << 20


@dataclass(frozen=True)
class Stored:
    """Voxels in a file that are not read yet.

    Attributes:
        path: the scan file, which has the header.
        shape: voxels along each stored axis, the first fastest.
        affine: voxel index to RAS mm.
        voxel_type: of one voxel, with its byte order.
        voxel_file: where the voxels are; `path` itself unless they lie beside the header.
        start: byte of `voxel_file` at which the voxels, or their compressed stream, begin.
        compression: how they are stored.
        offset: bytes to drop once inflated.
        slope: what stored values are multiplied by.
        intercept: what is then added.
        warnings: what is unusual about the header.
    """

    path: Path
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    voxel_type: np.dtype[np.generic]
    voxel_file: Path
    start: int = 0
    compression: Compression = ""
    offset: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """That the voxels take as they are stored."""
        return int(np.prod(self.shape, dtype=object)) * self.voxel_type.itemsize

    @property
    def header(self) -> Header:
        """What a dry run wants to know; memory counts the stored voxels and their conversion."""
        kept = self.voxel_type in (np.int16, np.uint8) and (self.slope, self.intercept) == (1.0, 0.0)
        converted = 0 if kept else self.bytes // self.voxel_type.itemsize * np.dtype(np.float32).itemsize
        return Header(self.shape, self.affine, self.voxel_type.newbyteorder("=").name, self.bytes + converted)


def read_stored(stored: Stored) -> Scan:
    """The scan whose header is `stored`; its voxels keep all axes of the file.

    Raises:
        DataError: if the voxels are no single real numbers, more than the file can hold or than memory allows (all
            before any is read), damaged, cut short, NaN or infinite.
    """
    _check_before_reading(stored)
    name = stored.path.name
    try:
        voxels, after, digest = _read(stored)
        if stored.voxel_file != stored.path:
            digest = sha256_of_all([file_sha256(stored.path), digest])
    except STREAM_ERRORS as error:
        raise damaged(stored.path, error) from error
    warnings = stored.warnings + ((f"{after} bytes after the voxels were ignored",) if after else ())
    voxels = compact_voxels(voxels, name, slope=stored.slope, intercept=stored.intercept)
    return Scan(voxels, stored.affine, warnings, sha256=digest)


def _check_before_reading(stored: Stored) -> None:
    name = stored.path.name
    if stored.voxel_type.kind not in "iuf":
        raise not_real_numbers(stored.voxel_type, name)
    on_disk = stored.voxel_file.stat().st_size - stored.start
    most = on_disk * (MOST_DEFLATE_SHRINKS if stored.compression else 1)
    if stored.offset + stored.bytes > most:
        raise DataError(
            f"{name}: cut short: {max(on_disk, 0)} bytes cannot hold the {stored.shape} voxels that the header "
            "declares; copy or export it again"
        )
    if stored.offset > MOST_BYTES_BEFORE:
        raise DataError(f"{name}: voxels start at byte {stored.offset}, beyond any header; export the scan again")
    needed, limit = stored.header.bytes / MB, scan_limit_mb()
    if needed > limit:
        raise DataError(
            f"{name}: its {stored.shape} voxels take {needed:.0f} MB of memory and {limit} MB are allowed; "
            "set MEDSEG_MAX_SCAN_MB, or use a machine with more memory"
        )


def _read(stored: Stored) -> tuple[NDArray[np.generic], int, str]:
    """Voxels in native byte order, how many bytes come after them, and the digest of the file."""
    voxels: NDArray[np.generic] = np.empty(stored.bytes // stored.voxel_type.itemsize, dtype=stored.voxel_type)
    name = stored.path.name
    with byte_stream(stored.voxel_file, compression=stored.compression, start=stored.start) as stream:
        stream.skip(stored.offset)
        received = stream.fill(voxels.view(np.uint8).data)
        if received < voxels.nbytes:
            raise DataError(f"{name}: cut short: {received} of {voxels.nbytes} voxel bytes; copy or export it again")
        after = len(stream.read(MOST_BYTES_AFTER + 1))  # also takes a compressed stream to its trailer
        if after > MOST_BYTES_AFTER:
            raise DataError(f"{name}: more voxels than the header's {stored.shape}; export the scan again")
        digest = stream.sha256()
    if not voxels.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(voxels.dtype.newbyteorder("="))
    return voxels.reshape(stored.shape, order="F"), after, digest
