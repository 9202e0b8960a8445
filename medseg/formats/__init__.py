"""Masks in the formats of archives, viewers and printers, each opt-in: DICOM SEG, RT structures, `.seg.nrrd`, STL."""

from medseg.formats.choice import FORMATS, Format, Structures, parse_formats, write_formats, write_label_tables
from medseg.formats.label_tables import write_itksnap_labels, write_slicer_colors
from medseg.formats.mesh import write_stl
from medseg.formats.seg_nrrd import write_seg_nrrd
from medseg.formats.segments import Segment, label_segments, region_segments

__all__ = [
    "FORMATS",
    "Format",
    "Segment",
    "Structures",
    "label_segments",
    "parse_formats",
    "region_segments",
    "write_formats",
    "write_itksnap_labels",
    "write_label_tables",
    "write_seg_nrrd",
    "write_slicer_colors",
    "write_stl",
]
