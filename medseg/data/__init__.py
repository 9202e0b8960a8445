"""Data sets: found, split, counted; and the synthetic one."""

from medseg.data.contents import count_labels, fingerprint, region_volumes
from medseg.data.datalist import Cases, Sample, find_cases, find_scans
from medseg.data.partial import PartialLabels, merge_unlabeled, merged_values
from medseg.data.phantom import make_phantom, phantom_case

__all__ = [
    "Cases",
    "PartialLabels",
    "Sample",
    "count_labels",
    "find_cases",
    "find_scans",
    "fingerprint",
    "make_phantom",
    "merge_unlabeled",
    "merged_values",
    "phantom_case",
    "region_volumes",
]
