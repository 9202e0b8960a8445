"""Detection over the lesions of many cases: by size, and against false alarms."""

from collections.abc import Mapping, Sequence
from typing import Any

from medseg.metrics.overlap import ratio

FALSE_ALARM_RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # per case, as in LUNA16
SIZES = ("volume_ml", "area_mm2", "area_px")


def detection_by_size(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Detection and volume error in each size bin, smallest first; reference lesions by their own size.

    Args:
        rows: what `lesion_rows` gave, of one case or many.

    Returns:
        Bin -> `n` (reference lesions), `detected`, `recall`, `mean_dice` (0 for missed ones), `false_alarms` (predicted
        lesions of that size without a partner), then of matched ones `volume_bias_ml` (predicted minus reference) and
        `volume_mae_ml` (in 2D `area_..._mm2` or `_px`).
    """
    table = {}
    for name in sorted({row["size_bin"] for row in rows}, key=_bin_order):
        reference = [row for row in rows if row["of"] == "reference" and row["size_bin"] == name]
        matched = [row for row in reference if row["status"] == "matched"]
        alarms = sum(row["status"] == "false_alarm" and row["size_bin"] == name for row in rows)
        size = next(key for row in rows for key in row if key in SIZES)
        quantity, unit = size.split("_")
        errors = [row[f"partner_{size}"] - row[size] for row in matched]
        table[name] = {
            "n": len(reference),
            "detected": len(matched),
            "recall": ratio(len(matched), len(reference)),
            "mean_dice": ratio(sum(row["dice"] for row in reference), len(reference)),
            "false_alarms": alarms,
            f"{quantity}_bias_{unit}": ratio(sum(errors), len(errors)),
            f"{quantity}_mae_{unit}": ratio(sum(map(abs, errors)), len(errors)),
        }
    return table


def froc(rows: Sequence[Mapping[str, Any]], *, n_cases: int) -> dict[str, Any]:
    """Free-response ROC: recall against false alarms per case as the least score that counts goes down.

    Args:
        rows: what `lesion_rows` gave with `scores`, of all cases together.
        n_cases: cases, those without any lesion included.

    Returns:
        `thresholds` (falling), `recall` and `false_alarms_per_case` at each; `recall_at`, false alarms per case ->
        recall with no more of them; `froc_score`, the mean of these. Recall is None without reference lesions.

    Raises:
        ValueError: if a predicted lesion has no score or `n_cases` is not positive.

    Reference:
        Bunch et al., "A free response approach to the measurement and characterization of radiographic observer
        performance", 1977; the seven rates of LUNA16 (Setio et al., 2017).
    """
    pred = [row for row in rows if row["of"] == "pred"]
    if n_cases < 1:
        raise ValueError(f"n_cases is {n_cases}; give the number of cases that the rows are of")
    if any(row.get("score") is None for row in pred):
        raise ValueError("a predicted lesion has no score; give lesion_rows the probabilities as `scores`")
    n_lesions = sum(row["of"] == "reference" for row in rows)
    thresholds = sorted({row["score"] for row in pred}, reverse=True)
    found = [sum(row["status"] == "matched" and row["score"] >= least for row in pred) for least in thresholds]
    alarms = [sum(row["status"] == "false_alarm" and row["score"] >= least for row in pred) for least in thresholds]
    recall_at: dict[str, float | None] = {}
    for rate in FALSE_ALARM_RATES:
        hits = [hit for hit, false in zip(found, alarms, strict=True) if false <= rate * n_cases]
        recall_at[f"{rate:g}"] = ratio(max(hits, default=0), n_lesions)
    at_rates = [recall for recall in recall_at.values() if recall is not None]
    return {
        "thresholds": thresholds,
        "recall": [ratio(hit, n_lesions) for hit in found],
        "false_alarms_per_case": [false / n_cases for false in alarms],
        "recall_at": recall_at,
        "froc_score": ratio(sum(at_rates), len(at_rates)),
    }


def _bin_order(name: str) -> float:
    """The lower bound in a bin's name."""
    return -1.0 if name[0] in "<a" else float(name.split()[0].split("-")[0].lstrip(">="))
