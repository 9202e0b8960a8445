"""One series to a scan: headers judged first, memory next, pixels last."""

import hashlib
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.memory import scan_limit_mb
from medseg.reading.dicom.files import Files, open_files
from medseg.reading.dicom.headers import FileHeader, Slice, quiet_pydicom
from medseg.reading.dicom.kinds import CT, kind_of
from medseg.reading.dicom.pixels import stored_pixels
from medseg.reading.dicom.problems import problem_of, stack_of
from medseg.reading.dicom.series import Headers, read_headers
from medseg.reading.dicom.stacking import Stack
from medseg.reading.scan import INT16, Header, Scan, ScanSource, sha256_of_all

AIR_HU = -1024  # the lowest HU of 12 bits; what lies below is padding outside the field of view
PADDING_HU = 4096  # a padding value as high as this lies above tissue; a lower one may be a tissue's value too
PIXEL_THREADS = 2  # reading, hashing and decoding let go of Python's lock
BATCH = 16  # files in memory at a time
LONGER_HEADER = 1 << 16  # bytes by which headers in one folder may differ in length
NAME = "DICOM series"


@dataclass(frozen=True)
class _Volume:
    """A series whose headers are sound."""

    headers: dict[Path, FileHeader]
    stack: Stack

    @property
    def voxel_type(self) -> np.dtype[np.generic]:
        """Int16 if all rescales are whole numbers, else float32."""
        numbers = {number for plane in self.stack.slices for number in _rescale(plane)}
        return np.dtype(np.int16 if all(number.is_integer() for number in numbers) else np.float32)

    @property
    def bytes(self) -> int:
        """Of the voxels, at most: float32, where values leave int16."""
        return int(np.prod(self.stack.shape, dtype=object)) * self.voxel_type.itemsize


def read_series(source: ScanSource) -> Scan:
    """Voxels `(columns, rows, slices)` of a series, CT in HU, int16 where all values fit, else float32.

    Slices lie along their normal in the direction that makes the axes right-handed. In CT, what is below -1024 HU
    (padding outside the field of view, such as -3024) becomes -1024, as does the padding value if it lies above all
    tissue. MONOCHROME1 says how a viewer shows a CT, not what its HU are: they are as the rescale gives them, with a
    warning.

    Args:
        source: of `find_series`; without `files` the folder or zip is searched for `series_uid`.

    Raises:
        DataError: if the series is not one whole volume on one grid, in words that name the slice (`slice_name`), or
            takes more memory than there is.
    """
    quiet_pydicom()
    with _opened(source) as files:
        volume = _judged(source, files)
        _check_memory(volume, files)
        return _read(volume, files)


def read_series_header(source: ScanSource) -> Header:
    """Grid, voxel type and memory of a series, from its headers.

    Raises:
        DataError: as `read_series`, but for damaged pixels.
    """
    quiet_pydicom()
    with _opened(source) as files:
        volume = _judged(source, files)
    return Header(volume.stack.shape, volume.stack.affine, volume.voxel_type.name, volume.bytes)


@contextmanager
def _opened(source: ScanSource) -> Iterator[Files]:
    """The files of a source; every refusal says that it is of a DICOM series, and a file that is gone is one."""
    try:
        with open_files(source.path) as files:
            yield files
    except DataError as error:
        raise DataError(f"{NAME}: {error}") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{NAME}: a file cannot be read ({why}); check the folder, or copy it again") from error


def _judged(source: ScanSource, files: Files) -> _Volume:
    """The headers of a source, refused if they are not those of one volume."""
    names = files.names()
    if source.files:
        folders, wanted = {name.parent for name in source.files}, set(source.files)
        if not wanted.issubset(names):
            raise DataError("a file of the series is gone; inspect the folder again")
        own = read_headers(files, source.path, source.files)
        headers = list(own.files)
        longest = max((header.pixel_offset for header in headers), default=0) + LONGER_HEADER
        others = [name for name in names if name.parent in folders and name not in wanted]
        beside = read_headers(files, source.path, others, whole_from=longest)  # a damaged slice may be among them
        strays, refused = [*own.unreadable, *beside.unreadable], own.refused + beside.refused
    else:
        found = read_headers(files, source.path, names)
        refused = found.refused
        headers = _of_one_series(found, source.series_uid)
        folders = {header.file.parent for header in headers}
        strays = [(name, why) for name, why in found.unreadable if name.parent in folders]
    if refused:
        raise refused[0]  # so that a share that is gone is told from a file that is damaged
    if source.files and len(headers) < len(source.files) and not strays:
        raise DataError("a file of the series is no longer DICOM; inspect the folder again")
    problem = problem_of(headers, strays)
    if problem:
        raise DataError(problem)
    return _Volume({header.file: header for header in headers}, stack_of(headers))


def _of_one_series(found: Headers, series_uid: str) -> list[FileHeader]:
    """The volume files of this UID, of one patient and study."""
    groups: dict[tuple[str, str], list[FileHeader]] = defaultdict(list)
    named = [header for header in found.files if header.series == series_uid]
    for header in named:
        if not kind_of(header):
            groups[(header.patient, header.study)].append(header)
    if not groups and named:
        raise DataError(problem_of(named))
    if not groups and found.unreadable:
        raise DataError(problem_of((), found.unreadable))
    if len(groups) != 1:
        raise DataError(
            f"{len(groups)} series of this UID in the folder, where one is wanted; list them with `medseg inspect`"
        )
    return next(iter(groups.values()))


def _check_memory(volume: _Volume, files: Files) -> None:
    """Refuse what would not fit, before a pixel is read: the voxels, and the file being read."""
    needed = (volume.bytes + max(files.size(name) for name in volume.headers)) / 2**20
    limit = scan_limit_mb()
    if needed > limit:
        columns, rows, slices = volume.stack.shape
        raise DataError(
            f"{columns} x {rows} x {slices} voxels need {needed:.0f} MB, over the limit of {limit} MB for one scan; "
            "set MEDSEG_MAX_SCAN_MB, or use a machine with more memory"
        )


def _read(volume: _Volume, files: Files) -> Scan:
    shape = volume.stack.shape
    voxels: NDArray[np.generic] = np.empty(shape, volume.voxel_type, order="F")  # slices are written one by one
    places: dict[Path, list[tuple[int, int]]] = defaultdict(list)  # of a file: frame and index along the slices
    for index, plane in enumerate(volume.stack.slices):
        places[plane.file].append((plane.frame, index))

    def read(name: Path) -> tuple[str, list[tuple[int, NDArray[np.generic]]]]:
        with files.open(name) as file:
            content = file.read()
        header = volume.headers[name]
        planes = [(index, _scaled(content, header, frame, voxels.dtype)) for frame, index in places[name]]
        return hashlib.sha256(content).hexdigest(), planes

    digests = []
    with ThreadPoolExecutor(PIXEL_THREADS) as pool:
        waiting = iter(places)
        for batch in iter(lambda: tuple(islice(waiting, BATCH)), ()):  # so that only a few files are in memory
            for digest, planes in pool.map(read, batch):
                digests.append(digest)
                for index, pixels in planes:
                    if pixels.dtype == np.float32 != voxels.dtype:
                        voxels = voxels.astype(np.float32)
                    voxels[:, :, index] = pixels.T
    warnings = volume.stack.warnings
    first = next(iter(volume.headers.values()))
    if first.photometric == "MONOCHROME1":
        warnings = (*warnings, "MONOCHROME1: HU are taken as the rescale gives them, not inverted")
    return Scan(voxels, volume.stack.affine, warnings, sha256=sha256_of_all(digests), modality=first.modality)


def _scaled(content: bytes, header: FileHeader, frame: int, kind: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Pixels after the rescale, of type `kind`, or float32 if values leave int16; padding of a CT is air."""
    stored = stored_pixels(content, header, frame)
    slope, intercept = _rescale(header.slices[frame])
    is_ct = header.sop_class in CT
    wide = np.float64 if kind == np.float32 else np.int64  # so that no product overflows
    values: NDArray[Any] = stored.astype(wide) * wide(slope) + wide(intercept)
    if is_ct:
        if header.padding is not None and header.padding * slope + intercept >= PADDING_HU:
            values[stored == header.padding] = AIR_HU
        np.maximum(values, AIR_HU, out=values)
    if kind == np.float32:
        return values.astype(np.float32)
    fits = INT16.min <= int(values.min()) and int(values.max()) <= INT16.max
    return values.astype(np.int16 if fits else np.float32)


def _rescale(plane: Slice) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where an MR has none."""
    return (1.0 if np.isnan(plane.slope) else plane.slope), (0.0 if np.isnan(plane.intercept) else plane.intercept)
