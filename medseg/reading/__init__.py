"""Scan and image files to voxels and affine, or a refusal that says why."""

from medseg.reading.images import IMAGE_SUFFIXES, is_image
from medseg.reading.masks import MaskCode
from medseg.reading.scan import Header, Scan, ScanSource, Unit
from medseg.reading.volumes import (
    SUFFIXES,
    read_channels,
    read_grid,
    read_header,
    read_label,
    read_label_grid,
    read_scan,
    read_source,
    scan_stem,
    source_files,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "SUFFIXES",
    "Header",
    "MaskCode",
    "Scan",
    "ScanSource",
    "Unit",
    "is_image",
    "read_channels",
    "read_grid",
    "read_header",
    "read_label",
    "read_label_grid",
    "read_scan",
    "read_source",
    "scan_stem",
    "source_files",
]
