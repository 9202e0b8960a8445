"""DICOM: series found by UID from headers alone, chosen for a reason, read to voxels in HU and an affine in RAS mm."""

from medseg.reading.dicom.choice import Choice, choose
from medseg.reading.dicom.kernels import kernel_sharpness
from medseg.reading.dicom.series import Series, find_series, only_series
from medseg.reading.dicom.volume import read_series, read_series_header

__all__ = [
    "Choice",
    "Series",
    "choose",
    "find_series",
    "kernel_sharpness",
    "only_series",
    "read_series",
    "read_series_header",
]
