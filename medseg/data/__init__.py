"""Data sets: found, split, counted; and the synthetic one, which loads SciPy and so is imported when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg.data.contents import count_labels, fingerprint, region_volumes
from medseg.data.datalist import Cases, Sample, find_cases, find_scans
from medseg.data.partial import PartialLabels, annotated_regions, merge_unlabeled, merged_values

if TYPE_CHECKING:
    from medseg.data.phantom import make_phantom, phantom_case

__all__ = [
    "Cases",
    "PartialLabels",
    "Sample",
    "annotated_regions",
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

SYNTHETIC = ("make_phantom", "phantom_case")


def __getattr__(name: str) -> Any:
    if name not in SYNTHETIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.phantom"), name)
