"""The headers of the series that a mask belongs to: DICOM results must name every image that they are about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO
from uuid import NAMESPACE_OID, uuid5

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medseg.errors import DataError
from medseg.reading import ScanSource
from medseg.reading.dicom.files import open_files

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAY_BE_EMPTY = (  # of patient and study: must be there in what refers to them
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
UUID_ROOT = "2.25"  # of UIDs that are UUIDs
NEAR = 0.1  # voxels between an image's own corner and the grid's, beyond which they are not the same image


@dataclass(frozen=True)
class SourceImages:
    """Headers, without pixels, of the images that a mask was made of.

    They hold the patient's name, as every DICOM result must; they go nowhere else.

    Attributes:
        headers: one a slice, in the order of the voxels; or the one of a multi-frame image.
        frames: of a multi-frame image: for each slice its frame, from 0; else empty.
    """

    headers: tuple[Dataset, ...]
    frames: tuple[int, ...] = ()

    @property
    def first(self) -> Dataset:
        """Any of the headers: patient, study and series are the same in all."""
        return self.headers[0]

    def reference(self, index: int) -> tuple[Dataset, int | None]:
        """The image that slice `index` lies on, and in a multi-frame image its frame, from 1."""
        return (self.first, self.frames[index] + 1) if self.frames else (self.headers[index], None)


def source_images(source: ScanSource, affine: NDArray[np.float64], slices: int) -> SourceImages:
    """Headers of the source's images.

    Args:
        source: a DICOM series as it was found.
        affine: `(4, 4)` of the scan that was read of it, voxel index to RAS mm.
        slices: of that scan.

    Raises:
        DataError: if the files are gone or are not the images that were read.
    """
    try:
        with open_files(source.path) as files:
            headers = [_header(files.open(name)) for name in source.files]
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise DataError("DICOM series: a file is gone or has changed since it was read; run the case again") from error
    multi_frame = len(headers) == 1 and "NumberOfFrames" in headers[0]
    if multi_frame:
        groups = headers[0].PerFrameFunctionalGroupsSequence
        positions = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
    else:
        positions = [header.ImagePositionPatient for header in headers]
    order = _slices_of(positions, affine, slices)
    if multi_frame:
        return SourceImages((headers[0],), tuple(order))
    return SourceImages(tuple(headers[place] for place in order))


def _slices_of(positions: Sequence[Sequence[float]], affine: NDArray[np.float64], slices: int) -> list[int]:
    """For each slice of the grid, which image lies on it."""
    to_voxel = np.linalg.inv(RAS_TO_LPS @ affine)
    placed = {}
    for image, position in enumerate(positions):
        column, row, index = (to_voxel @ [*map(float, position), 1])[:3]
        if max(abs(column), abs(row), abs(index - round(index))) < NEAR:
            placed[round(index)] = image
    if sorted(placed) != list(range(slices)) or len(positions) != slices:
        raise DataError("DICOM series: its images are not where they were read; run the case again")
    return [placed[index] for index in range(slices)]


def new_uid(images: SourceImages, *parts: str) -> UID:
    """A UID that follows from the source series and `parts`: the same result of the same scan keeps its UID."""
    name = "|".join([str(images.first.SeriesInstanceUID), *parts])
    return UID(f"{UUID_ROOT}.{uuid5(NAMESPACE_OID, name).int}")


def _header(file: IO[bytes]) -> Dataset:
    with file:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    if not header.get("SpecificCharacterSet", "there"):
        del header.SpecificCharacterSet  # present but empty: the default, as if it were absent
    for keyword in MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    if not header.get("FrameOfReferenceUID"):
        raise DataError("DICOM series: no frame of reference, which DICOM results must name; use the NIfTI mask")
    return header
