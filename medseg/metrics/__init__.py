"""Metrics on whole scans: pure NumPy, region by region."""

from medseg.metrics.overlap import confusion, mean_over_cases, region_overlap

__all__ = ["confusion", "mean_over_cases", "region_overlap"]
