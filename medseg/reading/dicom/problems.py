"""Why files cannot be read as one volume in HU, before their slices are laid on a grid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import UID

from medseg.reading.dicom.headers import FileHeader, Slice
from medseg.reading.dicom.kinds import CT, kind_of
from medseg.reading.dicom.pixels import can_decode
from medseg.reading.dicom.stacking import Stack, file_name, slice_name, stack_slices

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
HU_TYPES = ("", "HU", "US")  # US: unspecified


def problem_of(headers: Sequence[FileHeader], unreadable: Sequence[tuple[Path, str]] = ()) -> str:
    """The first reason, in words, why files cannot be read as one volume; empty if there is none but their grid."""
    for name, why in unreadable:
        if not headers:
            return f"{file_name(name)} {why}"
        return f"{file_name(name)} beside the series {why}; if it is no slice, move it away"
    kind = kind_of(headers[0])
    if kind:
        return f"is {kind}, no volume"
    if not headers[0].series:
        return "no SeriesInstanceUID, so which slices belong together is unknown; export it again"
    if len({header.reference for header in headers}) > 1:
        return "slices of several frames of reference (the patient was moved); export each as a series of its own"
    return next((problem for problem in map(_file_problem, headers) if problem), "")


def stack_of(headers: Sequence[FileHeader]) -> Stack:
    """All planes of the files on one grid.

    Raises:
        DataError: see `stack_slices`.
    """
    return stack_slices([plane for header in headers for plane in header.slices])


def _file_problem(header: FileHeader) -> str:
    name = slice_name(header.slices[0])
    if header.samples != 1 or header.photometric not in MONOCHROME:
        return f"{name} is in color ({header.photometric[:16]}), not one value a pixel; export the original images"
    if header.photometric == "MONOCHROME1" and header.sop_class not in CT:
        return f"{name} is MONOCHROME1 (bright is stored low), whose values have no fixed meaning; export it again"
    if header.allocated not in (8, 16) or not 1 <= header.stored <= header.allocated:
        return (
            f"{name} has {header.stored} of {header.allocated} bits a pixel, of which 8 or 16 are read; export it again"
        )
    if header.missing_bytes:
        return f"{name} is cut short, {header.missing_bytes} bytes of its pixels are missing; copy the series again"
    if not can_decode(header.transfer_syntax):
        return (
            f"{name} is compressed as {UID(header.transfer_syntax).name[:80]}, which is not read; decompress it first"
        )
    return next((problem for plane in header.slices if (problem := _scale_problem(header, plane))), "")


def _scale_problem(header: FileHeader, plane: Slice) -> str:
    name = slice_name(plane)
    if header.sop_class not in CT:
        return f"{name} has a RescaleSlope of 0; export the series again" if plane.slope == 0 else ""
    if np.isnan(plane.slope) or np.isnan(plane.intercept):
        return f"{name} has no RescaleSlope and RescaleIntercept, so its HU are unknown; export the series again"
    if plane.slope == 0:
        return f"{name} has a RescaleSlope of 0, so its HU are lost; export the series again"
    if plane.rescale_type not in HU_TYPES:
        return f"{name} has values in {plane.rescale_type[:16]!r}, not HU; export the series in HU"
    return ""
