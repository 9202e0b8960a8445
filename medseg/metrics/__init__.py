"""Metrics on whole scans, in NumPy: every name and definition is in docs/metrics.md."""

from medseg.metrics.agreement import agreement, intraclass_correlation
from medseg.metrics.calibration import CalibrationBins, calibration_bins, fit_temperature, log_probabilities
from medseg.metrics.case import CaseMetrics, case_metrics
from medseg.metrics.detection import detection_by_size, froc
from medseg.metrics.lesions import lesion_rows, lesion_scores
from medseg.metrics.overlap import (
    class_scores,
    confusion,
    count_cases,
    mean_over_cases,
    region_overlap,
    voxel_scores,
)
from medseg.metrics.pooling import pooled
from medseg.metrics.summaries import bootstrap_means, summary
from medseg.metrics.surface import (
    SurfaceDistances,
    average_distance,
    hausdorff,
    surface_dice,
    surface_distances,
    surface_scores,
)

__all__ = [
    "CalibrationBins",
    "CaseMetrics",
    "SurfaceDistances",
    "agreement",
    "average_distance",
    "bootstrap_means",
    "calibration_bins",
    "case_metrics",
    "class_scores",
    "confusion",
    "count_cases",
    "detection_by_size",
    "fit_temperature",
    "froc",
    "hausdorff",
    "intraclass_correlation",
    "lesion_rows",
    "lesion_scores",
    "log_probabilities",
    "mean_over_cases",
    "pooled",
    "region_overlap",
    "summary",
    "surface_dice",
    "surface_distances",
    "surface_scores",
    "voxel_scores",
]
