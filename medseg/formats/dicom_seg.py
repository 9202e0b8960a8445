"""DICOM Segmentation objects that name their model and reference the series they are about.

Reference:
    DICOM PS3.3, "Segmentation IOD"; written by highdicom.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg import __version__
from medseg.errors import DataError
from medseg.formats.dicom_source import new_uid, source_images
from medseg.formats.segments import Code, Segment
from medseg.notices import NOT_A_DEVICE
from medseg.reading import ScanSource
from medseg.writing import aside

SERIES_NUMBER = 900  # beside the scanner's own
MOST_LETTERS = 64  # of DICOM's long strings (LO)


def write_dicom_seg(
    label: NDArray[np.unsignedinteger],
    affine: NDArray[np.float64],
    path: str | Path,
    *,
    source: ScanSource,
    segments: Sequence[Segment],
    model: str,
    version: str,
) -> None:
    """Write a label map as a binary DICOM SEG, whole and read back, or not at all.

    The patient's name and dates come from the source, as DICOM asks for: this file is for the archive that the scan is
    from. A segment without a voxel is left out of the frames but named.

    Args:
        label: `(X, Y, Z)` on the grid that the source was read on.
        affine: `(4, 4)`, voxel index to RAS mm.
        path: where to write; an older file is replaced.
        source: the DICOM series.
        segments: of one label value or several, which may overlap.
        model: the model's name.
        version: the model's version.

    Raises:
        DataError: if the source has changed since it was read, or the mask is empty, or does not read back.
    """
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code as DicomCode

    target = Path(path)
    if not label.any():
        raise DataError(f"{target.name}: the mask is empty, so there is nothing to segment; none is written")
    images = source_images(source, affine, label.shape[2])

    def coded(code: Code) -> DicomCode:
        return DicomCode(code.value, code.scheme, code.meaning)

    algorithm = hd.AlgorithmIdentificationSequence(
        name=model[:MOST_LETTERS], version=version, family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.name[:MOST_LETTERS],
            segmented_property_category=coded(segment.category),
            segmented_property_type=coded(segment.type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*segment.color),
        )
        for number, segment in enumerate(segments, start=1)
    ]
    masks = np.stack([np.isin(label.T, segment.values) for segment in segments], axis=-1)  # (slices, rows, columns, N)
    if images.frames:  # highdicom expects the mask in the order of the frames
        masks = masks[np.argsort(images.frames)]
    digest = hashlib.sha256(np.ascontiguousarray(label).tobytes()).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # highdicom repeats the patient's name where it has one part only
        result = hd.seg.Segmentation(
            source_images=images.headers,
            pixel_array=masks.astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=new_uid(images, model, version, "SEG"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=new_uid(images, model, version, "SEG", digest),
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name=model[:MOST_LETTERS],
            software_versions=__version__,
            device_serial_number="0",
            content_description=NOT_A_DEVICE,
            series_description=f"{model} {version}"[:MOST_LETTERS],
            content_label="MEDSEG",
            content_creator_name="medseg",  # DICOM asks for the element
        )
    with aside(target) as temporary:
        result.save_as(temporary)
        written = pydicom.dcmread(temporary)
        if written.PixelData != result.PixelData:
            raise DataError(f"{target.name}: reads back differently than written; check the disk, then run it again")
