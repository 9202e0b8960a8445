"""Whether a scan or mask is still the file it was: size, time and ends, which cost nothing, or every byte."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medseg.reading import ScanSource, source_files
from medseg.reading.scan import sha256_of_all

END = 16 * 1024  # bytes at each end: the header, and of a gzip file the checksum of all it holds


@dataclass(frozen=True)
class Fingerprint:
    """What is known of a source without reading it all.

    Attributes:
        files: how many.
        size: bytes, of all together.
        times: digest of when each was changed last.
        ends: digest of the size and both ends of each.
    """

    files: int
    size: int
    times: str
    ends: str

    def as_json(self) -> dict[str, Any]:
        """As JSON data; no name of a file is in it."""
        return {"files": self.files, "size": self.size, "times": self.times, "ends": self.ends}


def fingerprint(source: ScanSource) -> Fingerprint:
    """Fingerprint of a source's files.

    Raises:
        OSError: if one cannot be read.
        DataError: if a header does not say where its voxels are.
    """
    size, times, ends = 0, hashlib.sha256(), hashlib.sha256()
    files = source_files(source)
    for path in files:
        with path.open("rb", buffering=0) as file:
            about = os.fstat(file.fileno())
            times.update(f"{about.st_mtime_ns}\n".encode())
            ends.update(f"{about.st_size}\n".encode() + _ends(file, about.st_size))
        size += about.st_size
    for member in _members(source):  # two series of one zip
        ends.update(member.encode())
    return Fingerprint(len(files), size, times.hexdigest()[:16], ends.hexdigest()[:32])


def sha256_of_source(source: ScanSource) -> str:
    """The digest that reading the source gives as `Scan.sha256`.

    Raises:
        OSError: if a file cannot be read.
        DataError: if a zip is damaged.
    """
    if not _members(source):
        return sha256_of_all([sha256_of_file(path) for path in source_files(source)])
    from medseg.reading.dicom.files import open_files  # few scans lie in zips

    digests = []
    with open_files(source.path) as files:
        for member in source.files:
            with files.open(member) as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]
    return sha256_of_all(digests)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mask_mark(mask: Path) -> dict[str, Any]:
    """Size, time and digest of a mask, by which `is_same_mask` knows it.

    Raises:
        OSError: if it cannot be read.
    """
    about = mask.stat()
    return {"size": about.st_size, "time_ns": about.st_mtime_ns, "sha256": sha256_of_file(mask)}


def is_same_mask(mask: Path, mark: dict[str, Any], *, verify: bool = False) -> bool:
    """Whether a mask is the one of `mark`; it is read only if its time differs, or to verify.

    Raises:
        OSError: if there is none, or it cannot be read.
    """
    about = mask.stat()
    if about.st_size != mark["size"]:
        return False
    if about.st_mtime_ns == mark["time_ns"] and not verify:
        return True
    return sha256_of_file(mask) == mark["sha256"]


def _ends(file: BinaryIO, size: int) -> bytes:
    if size <= 2 * END:
        return file.read(2 * END)
    first = file.read(END)
    file.seek(-END, os.SEEK_END)
    return first + file.read(END)


def _members(source: ScanSource) -> Sequence[str]:
    """Names of a series' files in its zip; none elsewhere."""
    return [path.as_posix() for path in source.files] if source.files and source.path.is_file() else ()
