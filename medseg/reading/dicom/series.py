"""The series in a folder or zip, from headers alone."""

import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

import numpy as np

from medseg.errors import DataError
from medseg.reading.dicom.files import ZIP_SUFFIX, Files, open_files
from medseg.reading.dicom.headers import (
    DICOM_SUFFIXES,
    HEAD_BYTES,
    FileHeader,
    Slice,
    has_magic,
    quiet_pydicom,
    read_file_header,
)
from medseg.reading.dicom.kinds import DICOMDIR, VOLUMES, kind_of
from medseg.reading.dicom.problems import problem_of, stack_of
from medseg.reading.dicom.stacking import Stack
from medseg.reading.scan import ScanSource

HEADER_THREADS = 4  # a network share answers several questions at a time; pydicom itself holds Python's lock
AXIAL_COSINE = 0.9  # normals within 26 degrees of the body's axis
PLANES = ("sagittal", "coronal", "axial")
OTHER_SCANS = (".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Series:
    """One series, as its headers tell.

    `description`, `contrast`, `study` and `patient` are as the files have them and may hold names: they stay in memory,
    and only a table of series that a person keeps for itself may show the first two. `problems` name slices by their
    numbers, never by a folder.

    Attributes:
        source: what `read_series` takes; files sorted by position where they form a grid.
        modality: such as "CT" or "MR".
        slices: planes, of all files together.
        frames: in one multi-frame file; 0 if each slice is a file.
        thickness_mm: of a slice as reconstructed, which may overlap; NaN where the header is silent.
        spacing_mm: between columns, between rows, between slices; NaN where they form no grid.
        kernel: of a CT reconstruction.
        contrast: agent; empty if none is noted.
        description: free text of the series.
        orientation: "axial", "sagittal", "coronal" or "oblique"; empty where unknown.
        image_type: such as `("ORIGINAL", "PRIMARY", "AXIAL")`.
        study: UID.
        patient: identifier.
        kind: empty for an image of a volume, else what it is, such as "a localizer".
        number: of the series in its study.
        problems: why it cannot be read, one phrase each.
    """

    source: ScanSource
    modality: str
    slices: int
    frames: int
    thickness_mm: float
    spacing_mm: tuple[float, float, float]
    kernel: str
    contrast: str
    description: str
    orientation: str
    image_type: tuple[str, ...]
    study: str
    patient: str
    kind: str = ""
    number: int | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Headers:
    """The files of one folder or zip: those of DICOM, and names of those that should be and cannot be read, with why.

    `refused` are the system's own errors among the latter (a share that is gone), which are no fault of the files.
    """

    path: Path
    files: tuple[FileHeader, ...]
    unreadable: tuple[tuple[Path, str], ...]
    refused: tuple[OSError, ...] = ()


def find_series(folder: Path) -> list[Series]:
    """All series below a folder, also inside its zips, or in one zip; in the order of their folders and numbers.

    A series is what has one SeriesInstanceUID, study and patient; its localizers are a series of their own. What is no
    DICOM file is passed over, DICOMDIR too, whose references are not followed. Objects that are no volume (reports,
    segmentations, secondary captures) are listed with `kind`, so that nothing is left out in silence. A zip that cannot
    be read is a series with a problem.

    Raises:
        DataError: if `folder` is neither a folder nor a sound zip.
    """
    quiet_pydicom()
    with open_files(folder) as files:
        names = files.names()
        found = _series_in(read_headers(files, folder, names))
    for archive in names if folder.is_dir() else ():
        if archive.suffix.lower() != ZIP_SUFFIX:
            continue
        try:
            with open_files(archive) as files:
                found += _series_in(read_headers(files, archive, files.names()))
        except DataError as error:
            found.append(_unreadable(archive, str(error)))
    return found


def only_series(folder: Path) -> ScanSource:
    """The one series of a folder or zip that is a volume; localizers, reports and the like beside it do not count.

    Raises:
        DataError: if there is none, or several.
    """
    volumes = [series for series in find_series(folder) if not series.kind]
    if len(volumes) != 1:
        raise DataError(
            f"{len(volumes)} DICOM series of volumes in the folder where one is wanted; list them with `medseg inspect`"
        )
    return volumes[0].source


def read_headers(files: Files, path: Path, names: Sequence[Path], *, whole_from: float = math.inf) -> Headers:
    """Headers of `names`, several at a time.

    Args:
        files: of which `names` are some.
        path: of the folder or zip.
        names: to be read.
        whole_from: of DICOM files that are longer than this, in bytes, the headers are known to be whole: passed over.
    """
    refused: list[OSError] = []

    def read(name: Path) -> FileHeader | tuple[Path, str] | None:
        suspect = name.suffix.lower() in DICOM_SUFFIXES
        try:
            size = files.size(name)
            if size == 0:
                return (name, "is empty; copy it again") if suspect else None
            with files.open(name) as file:
                if size > whole_from and has_magic(file.read(HEAD_BYTES)):
                    return None
                file.seek(0)
                header = read_file_header(file, name, size)
        except DataError as error:
            return name, str(error)
        except (OSError, MemoryError, RuntimeError, NotImplementedError, ValueError, EOFError) as error:
            if isinstance(error, FileNotFoundError) and name.name.lower().endswith(OTHER_SCANS):
                return None  # a link that leads nowhere, to a scan of another format: a case of its own
            if isinstance(error, OSError):
                refused.append(error)
            why = getattr(error, "strerror", None) or type(error).__name__
            return name, f"cannot be read ({why}); copy it again"
        if header and header.sop_class in VOLUMES and not header.pixel_offset:
            return name, "is without pixels, as if cut short; copy it again"
        return header or ((name, "is no DICOM file, whatever its name says") if suspect else None)

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = list(pool.map(read, names))
    return Headers(
        path,
        tuple(result for result in results if isinstance(result, FileHeader)),
        tuple(result for result in results if isinstance(result, tuple)),
        tuple(refused),
    )


def _series_in(found: Headers) -> list[Series]:
    groups: dict[tuple[str, ...], list[FileHeader]] = defaultdict(list)
    for header in found.files:
        if header.sop_class != DICOMDIR:
            groups[(header.patient, header.study, header.series, kind_of(header))].append(header)
    listed = [_series(found, headers, key[-1]) for key, headers in groups.items()]
    listed.sort(key=_order)
    claimed = {header.file.parent for header in found.files if not kind_of(header)}
    alone: dict[Path, list[tuple[Path, str]]] = defaultdict(list)
    for name, why in found.unreadable:
        if name.parent not in claimed:
            alone[name.parent].append((name, why))
    return listed + [_unreadable(_place(found.path, [names[0][0]]), problem_of((), names)) for names in alone.values()]


def _order(series: Series) -> tuple[str, str, str, int, str]:
    number = -1 if series.number is None else series.number
    return str(series.source.path), series.patient, series.study, number, series.source.series_uid


def _series(found: Headers, headers: list[FileHeader], kind: str) -> Series:
    first = headers[0]
    folders = {header.file.parent for header in headers}
    strays = [] if kind else [stray for stray in found.unreadable if stray[0].parent in folders]
    planes = [plane for header in headers for plane in header.slices]
    problem, stack = "", None
    if not kind:
        problem = problem_of(headers, strays)
        try:
            stack = stack_of(headers)
        except DataError as error:
            problem = problem or str(error)
    files = dict.fromkeys(plane.file for plane in (stack.slices if stack else planes))
    thickness = [plane.thickness_mm for plane in planes if plane.thickness_mm > 0]
    return Series(
        source=ScanSource(_place(found.path, list(files)), tuple(files), first.series),
        modality=first.modality,
        slices=0 if kind and not all(planes[0].shape) else len(planes),
        frames=len(planes) if planes[0].many else 0,
        thickness_mm=max(thickness, default=float("nan")),
        spacing_mm=_spacing(stack),
        kernel=first.kernel,
        contrast=first.contrast,
        description=first.description,
        orientation=_plane_name(planes[0]),
        image_type=first.image_type if any(first.image_type) else planes[0].kind,
        study=first.study,
        patient=first.patient,
        kind=kind,
        number=first.series_number,
        problems=(problem,) if problem else (),
    )


def _place(path: Path, files: Sequence[Path]) -> Path:
    """The deepest folder that holds all files of a series; of a zip the zip."""
    return path if path.is_file() else Path(commonpath([file.parent for file in files]))


def _spacing(stack: Stack | None) -> tuple[float, float, float]:
    if stack is None:
        return (float("nan"),) * 3
    x, y, z = np.linalg.norm(stack.affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def _plane_name(plane: Slice) -> str:
    if plane.orientation is None:
        return ""
    row, column = np.asarray(plane.orientation[:3]), np.asarray(plane.orientation[3:])
    normal = np.abs(np.cross(row, column))
    return PLANES[int(normal.argmax())] if normal.max() >= AXIAL_COSINE else "oblique"


def _unreadable(path: Path, problem: str) -> Series:
    nothing = float("nan")
    return Series(ScanSource(path), "", 0, 0, nothing, (nothing,) * 3, "", "", "", "", (), "", "", problems=(problem,))
