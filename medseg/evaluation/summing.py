"""What the cases of a card say together: summaries with intervals, by subgroup, by size, agreement, calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medseg.evaluation.findings import TITLES
from medseg.evaluation.judging import Record
from medseg.evaluation.judgment import Judgment
from medseg.metrics import CalibrationBins, CaseMetrics, agreement, detection_by_size, froc, pooled, summary
from medseg.metrics.case import lesion_name

COUNTS = ("_tp", "_fp", "_fn", "_tn")
SPACINGS_MM = (1.5, 3.0)  # bounds of the groups by slice thickness
MOST_GROUPS = 12  # of a column: beyond that it is no grouping but a name


def add_up(records: Sequence[Record], judgment: Judgment) -> dict[str, Any]:
    """All figures of a card, as JSON data.

    Args:
        records: of all cases.
        judgment: what they were judged by.

    Returns:
        `summary` (each metric's mean and interval), `pooled`, `subgroups` (grouping -> group -> figures), `by_size`,
        `froc` (None without scores), `agreement` (region -> figures), `calibration`, `findings` (kind -> case ids),
        `empty` (region -> counts).
    """
    counted = [record for record in records if record.counted]
    metrics = [record.metrics for record in counted if record.metrics is not None]
    lesions = [row for one in metrics for row in one.lesion_rows]
    return {
        "summary": _summary(counted),
        "pooled": pooled(metrics) if metrics else {},
        "subgroups": subgroups(counted, judgment),
        "by_size": detection_by_size(lesions),
        "froc": _froc(lesions, sum(one.lesions is not None for one in metrics)),
        "agreement": agreements(records, judgment),
        "calibration": _calibration(metrics),
        "findings": {kind: ids for kind in TITLES if (ids := with_finding(records, kind))},
        "empty": {region: _empty(metrics, region) for region in judgment.regions},
    }


def with_finding(records: Sequence[Record], kind: str) -> list[str]:
    """Ids of the cases that have a finding of this kind."""
    return [record.case_id for record in records if any(finding["kind"] == kind for finding in record.findings)]


def with_groups(record: Record, *, extra: Mapping[str, str], columns: Sequence[str]) -> Record:
    """A record with its groups: by lesion size, by spacing, and by columns of a table such as `phase`."""
    groups = {}
    if record.metrics is not None and record.metrics.lesions is not None:
        own = [row for row in record.metrics.lesion_rows if row["of"] == "reference"]
        groups["largest lesion"] = own[0]["size_bin"] if own else "no lesion"
    if record.spacing and record.metrics is not None and record.metrics.settings["unit"] == "mm":
        groups["largest voxel edge"] = _spacing_group(max(record.spacing))
    groups |= {column: extra.get(column) or "not said" for column in columns}
    return replace(record, groups=groups)


def subgroups(records: Sequence[Record], judgment: Judgment) -> dict[str, dict[str, dict[str, Any]]]:
    """Grouping -> group -> `n`, and the summaries of Dice by both rules and of the lesion figures."""
    names = [f"{region}_{name}" for region in judgment.regions for name in ("dice", "dice_all")]
    if judgment.lesion_region:
        names += [lesion_name(name, judgment.regions) for name in ("lesion_recall", "lesion_f1_all")]
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    for grouping in dict.fromkeys(name for record in records for name in record.groups):
        groups = sorted({record.groups[grouping] for record in records if grouping in record.groups}, key=_group_order)
        if not 1 < len(groups) <= MOST_GROUPS:
            continue
        tables[grouping] = {}
        for group in groups:
            members = [record for record in records if record.groups.get(grouping) == group]
            tables[grouping][group] = {"n": len(members), **_summary(members, names)}
    return tables


def agreements(records: Sequence[Record], judgment: Judgment) -> dict[str, dict[str, Any]]:
    """Agreement of each region's volume (or area), over judged cases: a case that failed has measured nothing."""
    found = {}
    for region in judgment.regions:
        pairs = volumes(records, region)
        if pairs:
            of_pred, of_reference = zip(*((pred, reference) for _, pred, reference in pairs), strict=True)
            found[region] = {"unit": size_unit(records, region), **agreement(of_pred, of_reference)}
    return found


def volumes(records: Sequence[Record], region: str) -> list[tuple[str, float, float]]:
    """Case id, predicted and reference volume of each judged case that has the region in either."""
    unit = size_unit(records, region)
    judged = [(r.case_id, r.metrics.regions[region]) for r in records if _has(r, region) and r.metrics is not None]
    return [
        (case_id, float(scores[f"pred_{unit}"] or 0), float(scores[f"reference_{unit}"] or 0))
        for case_id, scores in judged
        if scores["empty"] != "both"
    ]


def size_unit(records: Sequence[Record], region: str) -> str:
    """What sizes are in: "ml", of 2D maps "mm2" or "px"."""
    for record in records:
        if record.metrics is not None and region in record.metrics.regions:
            names = record.metrics.regions[region]
            return next(name.removeprefix("pred_") for name in names if name.startswith("pred_"))
    return "ml"


def calibration_bins_of(metrics: Sequence[CaseMetrics], region: str) -> CalibrationBins | None:
    """The pooled bins of a region; None without probabilities."""
    sums = [one.calibration[region] for one in metrics if region in one.calibration]
    if not sums:
        return None
    return CalibrationBins(
        np.sum([one["count"] for one in sums], axis=0),
        np.sum([one["probability"] for one in sums], axis=0),
        np.sum([one["positive"] for one in sums], axis=0),
        sum(one["squared_error"] for one in sums),
    )


def _summary(records: Sequence[Record], names: Sequence[str] | None = None) -> dict[str, Any]:
    rows = [record.metrics.row() for record in records if record.metrics is not None]
    patients = [record.patient or record.case_id for record in records if record.metrics is not None]
    kept = [{key: value for key, value in row.items() if not key.endswith(COUNTS)} for row in rows]
    return dict(summary(kept, names=names, patients=patients)) if kept else {}


def _froc(lesions: Sequence[Mapping[str, Any]], n_cases: int) -> dict[str, Any] | None:
    pred = [row for row in lesions if row["of"] == "pred"]
    if not pred or any(row.get("score") is None for row in pred):
        return None
    return froc(lesions, n_cases=n_cases)


def _calibration(metrics: Sequence[CaseMetrics]) -> dict[str, Any]:
    found = {}
    for region in dict.fromkeys(name for one in metrics for name in one.calibration):
        bins = calibration_bins_of(metrics, region)
        if bins is not None:
            found[region] = {"ece": bins.ece, "brier": bins.brier, "curve": bins.curve()}
    return found


def _empty(metrics: Sequence[CaseMetrics], region: str) -> dict[str, int]:
    states = [one.regions[region]["empty"] for one in metrics if region in one.regions]
    return {
        "reference": states.count("reference") + states.count("both"),
        "pred": states.count("pred") + states.count("both"),
        "both": states.count("both"),
    }


def _has(record: Record, region: str) -> bool:
    return record.status == "judged" and record.metrics is not None and region in record.metrics.regions


def _spacing_group(edge_mm: float) -> str:
    low, high = SPACINGS_MM
    return f"up to {low:g} mm" if edge_mm <= low else f"{low:g}-{high:g} mm" if edge_mm <= high else f"over {high:g} mm"


def _group_order(name: str) -> tuple[int, str]:
    """Sizes from small to large, what is not said last."""
    first = {"no lesion": 0, "<": 1, "u": 1, ">": 3, "o": 3}
    return (4 if name == "not said" else first.get(name, first.get(name[:1], 2))), name
