"""Metrics on whole scans: pure NumPy, region by region."""

from medseg.metrics.overlap import confusion, count_cases, mean_over_cases, region_overlap

__all__ = ["confusion", "count_cases", "mean_over_cases", "region_overlap"]
