"""RT structure sets: contours of each structure on the slices of the series they are about.

Reference:
    DICOM PS3.3, "RT Structure Set IOD" (A.19) and "ROI Contour Module" (C.8.8.6).
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage

from medseg import __version__
from medseg.errors import DataError
from medseg.formats.contours import outlines
from medseg.formats.dicom_source import MAY_BE_EMPTY, RAS_TO_LPS, SourceImages, new_uid, source_images
from medseg.formats.segments import Segment
from medseg.notices import NOT_A_DEVICE
from medseg.reading import ScanSource
from medseg.writing import aside

SERIES_NUMBER = 901
MOST_LETTERS = 64
SHORT_LETTERS = 16
DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # the retired class that this module still names
FROM_SOURCE = (*MAY_BE_EMPTY, "StudyInstanceUID", "StudyDescription", "SpecificCharacterSet")


def write_rtstruct(
    label: NDArray[np.unsignedinteger],
    affine: NDArray[np.float64],
    path: str | Path,
    *,
    source: ScanSource,
    segments: Sequence[Segment],
    model: str,
    version: str,
) -> None:
    """Write a label map as an RT structure set, whole or not at all.

    Contours run halfway between voxels inside and outside. The patient's name and dates come from the source, as in
    `write_dicom_seg`.

    Args:
        label: `(X, Y, Z)` on the grid that the source was read on.
        affine: `(4, 4)`, voxel index to RAS mm.
        path: where to write; an older file is replaced.
        source: the DICOM series.
        segments: of one label value or several, which may overlap.
        model: the model's name.
        version: the model's version.

    Raises:
        DataError: if the source has changed since it was read, or the mask is empty.
    """
    target = Path(path)
    if not label.any():
        raise DataError(f"{target.name}: the mask is empty, so it has no contours; none is written")
    images = source_images(source, affine, label.shape[2])
    digest = hashlib.sha256(np.ascontiguousarray(label).tobytes()).hexdigest()
    result = _common(images.first, new_uid(images, model, version, "RTSTRUCT", digest), model, version)
    result.SeriesInstanceUID = new_uid(images, model, version, "RTSTRUCT")
    references = [_reference(images, index) for index in range(label.shape[2])]
    result.ReferencedFrameOfReferenceSequence = DicomSequence([_frame_of_reference(images.first, references)])
    roi, contour, observation = [], [], []
    for number, segment in enumerate(segments, start=1):
        mask = np.isin(label, segment.values)
        if not mask.any():
            continue
        roi.append(
            _dataset(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=images.first.FrameOfReferenceUID,
                ROIName=segment.name[:MOST_LETTERS],
                ROIGenerationAlgorithm="AUTOMATIC",
                ROIGenerationDescription=f"{model} {version}"[:MOST_LETTERS],
            )
        )
        items = list(_contours(mask, RAS_TO_LPS @ affine, references))
        contour.append(
            _dataset(
                ROIDisplayColor=list(segment.color), ContourSequence=DicomSequence(items), ReferencedROINumber=number
            )
        )
        observation.append(_observation(number, segment))
    result.StructureSetROISequence = DicomSequence(roi)
    result.ROIContourSequence = DicomSequence(contour)
    result.RTROIObservationsSequence = DicomSequence(observation)
    with aside(target) as temporary:
        result.save_as(temporary, enforce_file_format=True)


def _common(first: Dataset, instance: UID, model: str, version: str) -> Dataset:
    """Patient, study, series and equipment."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result = Dataset()
    result.file_meta = meta
    for keyword in FROM_SOURCE:
        if keyword in first:
            setattr(result, keyword, first[keyword].value)
    result.SOPClassUID, result.SOPInstanceUID = RTStructureSetStorage, instance
    result.Modality = "RTSTRUCT"
    result.SeriesNumber, result.InstanceNumber = SERIES_NUMBER, 1
    result.SeriesDescription = f"{model} {version}"[:MOST_LETTERS]
    result.Manufacturer, result.ManufacturerModelName = "medseg", model[:MOST_LETTERS]
    result.SoftwareVersions = [__version__, version]
    result.OperatorsName = ""
    result.StructureSetLabel = model[:SHORT_LETTERS]
    result.StructureSetDescription = NOT_A_DEVICE
    result.StructureSetDate = getattr(first, "StudyDate", "")  # the day of writing says nothing about the patient
    result.StructureSetTime = getattr(first, "StudyTime", "")
    result.ApprovalStatus = "UNAPPROVED"
    return result


def _reference(images: SourceImages, index: int) -> Dataset:
    """The image that slice `index` lies on."""
    header, frame = images.reference(index)
    reference = _dataset(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if frame is not None:
        reference.ReferencedFrameNumber = frame
    return reference


def _frame_of_reference(first: Dataset, references: Sequence[Dataset]) -> Dataset:
    images = {str(item.ReferencedSOPInstanceUID): item for item in references}
    listed = [
        _dataset(ReferencedSOPClassUID=item.ReferencedSOPClassUID, ReferencedSOPInstanceUID=instance)
        for instance, item in images.items()
    ]
    series = _dataset(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=DicomSequence(listed))
    study = _dataset(
        ReferencedSOPClassUID=DETACHED_STUDY,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=DicomSequence([series]),
    )
    return _dataset(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=DicomSequence([study]))


def _contours(mask: NDArray[np.bool_], lps: NDArray[np.float64], references: Sequence[Dataset]) -> Iterator[Dataset]:
    for index in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        for polygon in outlines(mask[:, :, index]):
            points = np.column_stack([polygon, np.full(len(polygon), index), np.ones(len(polygon))])
            places = (points @ lps.T)[:, :3]
            yield _dataset(
                ContourImageSequence=DicomSequence([references[index]]),
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(polygon),
                ContourData=[f"{number:.7g}" for number in places.ravel()],
            )


def _observation(number: int, segment: Segment) -> Dataset:
    code = _dataset(
        CodeValue=segment.type.value, CodingSchemeDesignator=segment.type.scheme, CodeMeaning=segment.type.meaning
    )
    return _dataset(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIInterpretedType="ORGAN",
        ROIInterpreter="",
        RTROIIdentificationCodeSequence=DicomSequence([code]),
    )


def _dataset(**elements: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
