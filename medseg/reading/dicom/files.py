"""The files of a folder or of a zip, read where they lie: nothing is unpacked to disk, nothing outside is followed."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from medseg.errors import DataError

ZIP_SUFFIX = ".zip"
MOST_MEMBERS = 200_000
MOST_MEMBER_BYTES = 8 << 30  # an enhanced CT of 4000 slices has 2 GB
MOST_RATIO = 200  # slices of one value reach 1000, but a whole archive of scans no more than 10
SMALL_BYTES = 256 << 20  # what unpacks to less harms nobody, whatever its ratio
ENCRYPTED = 0x1


class Files(Protocol):
    """Files under one folder or in one zip."""

    def names(self) -> list[Path]:
        """All regular files, sorted: as they lie on disk, or relative to the zip."""
        ...

    def size(self, name: Path) -> int:
        """Length of a file in bytes, unpacked."""
        ...

    def open(self, name: Path) -> IO[bytes]:
        """The file, to be read and closed."""
        ...


@contextmanager
def open_files(path: Path) -> Iterator[Files]:
    """The files of a folder, or of a zip that is safe to read.

    Raises:
        DataError: if there is none, or the zip is damaged, encrypted, or unpacks to too much; without a name, which
            may be a patient's.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a share that is gone
        raise DataError(f"the folder or zip cannot be opened ({error.strerror}); reconnect its share") from error
    if is_folder:
        yield _Folder(path)
        return
    if path.suffix.lower() != ZIP_SUFFIX or not is_file:
        raise DataError("no folder or zip of DICOM files; check the path")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError("the zip is not whole; copy it again") from error
    with archive:
        yield _Zip(archive, _safe_members(archive, path))


@dataclass(frozen=True)
class _Folder:
    """Files below a folder; links to folders are not followed, so no file is met twice and none lies elsewhere."""

    path: Path

    def names(self) -> list[Path]:
        found = []
        for folder, folders, files in os.walk(self.path, onerror=_closed_folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        return [name for name in found if _may_be_read(name)]

    def size(self, name: Path) -> int:
        return name.stat().st_size

    def open(self, name: Path) -> IO[bytes]:
        return name.open("rb")


def _closed_folder(error: OSError) -> None:
    """Said, because a folder passed over in silence might hold the scans."""
    raise DataError(
        f"a folder below cannot be listed ({error.strerror}); ask for the right to read it, or leave it out"
    )


def _may_be_read(name: Path) -> bool:
    """Regular files, and links that lead nowhere, which may stand for a lost slice; no pipes, which would block."""
    try:
        return name.is_file() or not name.exists()
    except OSError:
        return True  # reading it says why not


@dataclass(frozen=True)
class _Zip:
    """Members of a zip, by the name that the archive gives them; names are never used as paths on disk."""

    archive: zipfile.ZipFile
    members: dict[Path, zipfile.ZipInfo]

    def names(self) -> list[Path]:
        return sorted(self.members)

    def size(self, name: Path) -> int:
        return self._member(name).file_size

    def open(self, name: Path) -> IO[bytes]:
        return self.archive.open(self._member(name))

    def _member(self, name: Path) -> zipfile.ZipInfo:
        if name not in self.members:
            raise FileNotFoundError(2, "no such file in the zip")
        return self.members[name]


def _safe_members(archive: zipfile.ZipFile, path: Path) -> dict[Path, zipfile.ZipInfo]:
    """Members that are files; refuses an archive that could exhaust the machine."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > MOST_MEMBERS:
        raise DataError(f"the zip has {len(members)} files, and at most {MOST_MEMBERS} are read; split it")
    if any(member.flag_bits & ENCRYPTED for member in members):
        raise DataError("the zip is encrypted; unpack it with its password first")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(SMALL_BYTES, MOST_RATIO * path.stat().st_size):
        raise DataError(
            f"the zip would unpack to {unpacked / 2**30:.1f} GB, over {MOST_RATIO} times its size, as no archive "
            "of scans does; unpack it yourself if you trust it"
        )
    largest = max((member.file_size for member in members), default=0)
    if largest > MOST_MEMBER_BYTES:
        raise DataError(f"the zip has a file of {largest / 2**30:.1f} GB; unpack it first")
    return {Path(member.filename): member for member in members if not Path(member.filename).name.startswith(".")}
