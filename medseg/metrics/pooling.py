"""Figures of all cases taken together, from their summed counts: Dice global beside Dice per case."""

from collections.abc import Sequence

import numpy as np

from medseg.metrics.calibration import CalibrationBins
from medseg.metrics.case import CaseMetrics, lesion_name
from medseg.metrics.lesions import lesion_scores
from medseg.metrics.overlap import class_scores, voxel_scores

LESION_FIGURES = (
    "lesion_recall",
    "lesion_precision",
    "lesion_f1",
    "lesion_recall_any_overlap",
    "lesion_dice",
    "lesion_matched_dice",
    "panoptic_quality",
    "segmentation_quality",
    "recognition_quality",
)


def pooled(cases: Sequence[CaseMetrics]) -> dict[str, float | None]:
    """Metrics of the cases as if they were one: large lesions and large livers weigh more, and no case is empty.

    Each region is pooled over the cases that have it annotated, each lesion figure over those that have lesions
    judged, and the figures over all classes over the cases in which every region was annotated.

    Args:
        cases: of one set, with the same regions.

    Returns:
        `<region>_dice_global`, and so on for iou, precision, recall, ece and brier; the names of `overall` and the
        ratios of `lesions` with `_global`. None where there is nothing to divide by.

    Raises:
        ValueError: if the cases were judged with different regions.

    Reference:
        "Dice global" beside "Dice per case": Bilic et al., "The Liver Tumor Segmentation Benchmark (LiTS)", 2023.
    """
    if any(case.classes != cases[0].classes for case in cases):
        raise ValueError("the cases have different regions; judge all with the same")
    figures: dict[str, float | None] = {}
    for region in dict.fromkeys(name for case in cases for name in case.regions):
        counts = [case.regions[region] for case in cases if region in case.regions]
        scores = voxel_scores(*(sum(int(scores[key] or 0) for scores in counts) for key in ("tp", "fp", "fn")))
        figures |= {f"{region}_{name}_global": value for name, value in scores.items()}
        if bins := [_bins(case, region) for case in cases if region in case.calibration]:
            together = sum(bins[1:], start=bins[0])
            figures |= {f"{region}_ece_global": together.ece, f"{region}_brier_global": together.brier}
    if rows := [row for case in cases for row in case.lesion_rows]:
        scores = lesion_scores(rows)
        figures |= {f"{lesion_name(name, cases[0].regions)}_global": scores[name] for name in LESION_FIGURES}
    if whole := [np.array(case.confusion) for case in cases if case.overall]:
        overall = class_scores(np.sum(whole, axis=0))
        figures |= {f"{name}_global": value for name, value in overall.items()}
    return figures


def _bins(case: CaseMetrics, region: str) -> CalibrationBins:
    sums = case.calibration[region]
    return CalibrationBins(
        np.array(sums["count"]), np.array(sums["probability"]), np.array(sums["positive"]), sums["squared_error"]
    )
