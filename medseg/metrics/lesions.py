"""Lesion by lesion: which were found, which missed, which are false alarms, which flow together or fall apart.

**The rule of matching.** A reference lesion and a predicted lesion may be partners if the IoU of the two is at least
`match_iou`, 0.1 unless said otherwise; partners are taken one to one, from the largest IoU down. Any-overlap matching
would let one prediction that floods the organ find every lesion; IoU > 0.5, as in the panoptic quality, calls a small
lesion missed whose outline is one voxel off. 0.1 is what 3D lesion detection has settled on, and one to one makes a
merged prediction find one lesion, not all of them; `lesion_merged` and `lesion_split` say how often that happens.

Reference:
    Baumgartner et al., "nnDetection", MICCAI 2021 (IoU 0.1); Maier-Hein et al., "Metrics reloaded: recommendations for
    image analysis validation", Nature Methods 2024 (localization by low IoU for small structures, assignment).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.geometry import connected_lesions
from medseg.metrics.overlap import ratio

MATCH_IOU = 0.1
PANOPTIC_IOU = 0.5
SIZE_BINS_MM = (10.0, 20.0)

LesionRow = dict[str, Any]


def lesion_rows(
    pred: NDArray[Any],
    reference: NDArray[Any],
    affine: ArrayLike,
    *,
    match_iou: float = MATCH_IOU,
    size_bins_mm: Sequence[float] = SIZE_BINS_MM,
    scores: NDArray[Any] | None = None,
    unit: str = "mm",
) -> list[LesionRow]:
    """One row a lesion: those of the reference, then those of the prediction, each numbered largest first.

    Args:
        pred: mask `(X, Y)` or `(X, Y, Z)`; what is not zero is lesion.
        reference: mask on the same grid.
        affine: `(dims + 1, dims + 1)`, voxel index -> mm; of a slice in space `(4, 3)`.
        match_iou: smallest IoU of partners.
        size_bins_mm: bounds between the size bins, by the diameter of the sphere (in 2D circle) of the same size.
        scores: probability of being lesion on the same grid; a predicted lesion's score is its mean.
        unit: of the affine, "mm" or "px".

    Returns:
        Rows with `of` ("reference" or "pred"), `lesion`, `volume_ml` (in 2D `area_mm2` or `area_px`), `diameter_mm`,
        `size_bin`, `status` ("matched", "missed", "false_alarm"), `partner` and `partner_volume_ml` (None without),
        `overlaps` (lesions of the other map), `iou` and `dice` (with the partner, 0 without), `merged` (is, or is
        overlapped by, a predicted lesion over several reference lesions), `split` (is, or overlaps, a reference lesion
        under several predicted ones), `score` (None for a reference lesion or without `scores`), and the centroid
        `x_mm`, `y_mm`, `z_mm`.

    Raises:
        ValueError: if the grids differ or `match_iou` is not above 0 and at most 1.
    """
    if pred.shape != reference.shape:
        raise ValueError(f"pred is {pred.shape} and reference {reference.shape}; bring both to one grid")
    if not 0 < match_iou <= 1:
        raise ValueError(f"match_iou is {match_iou}; give a number above 0 and up to 1")
    numbered = {"reference": connected_lesions(reference), "pred": connected_lesions(pred)}
    measured = {of: _measured(numbers, affine, size_bins_mm, unit) for of, numbers in numbered.items()}
    shared = _shared_voxels(numbered["reference"], numbered["pred"])
    pairs = _partners(shared, measured["reference"], measured["pred"], match_iou)
    if scores is not None:
        inside = numbered["pred"] > 0
        summed = np.bincount(numbered["pred"][inside], weights=np.asarray(scores)[inside], minlength=1)
        for row in measured["pred"]:
            row["score"] = float(summed[row["lesion"]] / row["_voxels"])
    size = size_name(unit, pred.ndim)
    touching = _touching(shared)
    for of, other, side in (("reference", "pred", 0), ("pred", "reference", 1)):
        partner_of = {pair[side]: (pair[1 - side], overlap) for pair, overlap in pairs.items()}
        for row in measured[of]:
            row["overlaps"] = touching[side].get(row["lesion"], [])
            row["split" if of == "reference" else "merged"] = len(row["overlaps"]) > 1
            row["merged" if of == "reference" else "split"] = any(
                len(touching[1 - side][number]) > 1 for number in row["overlaps"]
            )
            if row["lesion"] in partner_of:
                number, (iou, dice) = partner_of[row["lesion"]]
                row |= {"status": "matched", "partner": number, "iou": iou, "dice": dice}
                row[f"partner_{size}"] = measured[other][number - 1][size]
            else:
                row["status"] = "missed" if of == "reference" else "false_alarm"
    rows = [{"of": of, **row} for of, found in measured.items() for row in found]
    return [{key: value for key, value in row.items() if key != "_voxels"} for row in rows]


def lesion_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """Counts, recall, precision, F1, lesion-wise Dice and panoptic quality of one case, or of the rows of many.

    Without a reference lesion all but the counts are None; the names that end in `_all` are then 1 if nothing was
    predicted either, and 0 if something was. `lesion_precision` and `lesion_matched_dice` are None as well if nothing
    was predicted or matched.

    Args:
        rows: what `lesion_rows` gave.

    Reference:
        Kirillov et al., "Panoptic Segmentation", CVPR 2019; lesion-wise Dice as in BraTS 2023, without its dilation.
    """
    reference = [row for row in rows if row["of"] == "reference"]
    pred = [row for row in rows if row["of"] == "pred"]
    matched = [row for row in reference if row["status"] == "matched"]
    n_all = len(reference) + len(pred) - len(matched)  # matched + missed + false alarms
    strict = [row["iou"] for row in matched if row["iou"] > PANOPTIC_IOU]
    halves = (len(reference) + len(pred)) / 2  # pairs + missed / 2 + false alarms / 2, whatever the threshold
    recall, precision = ratio(len(matched), len(reference)), ratio(len(matched), len(pred))
    scores: dict[str, float | None] = {
        "lesion_recall": recall,
        "lesion_precision": precision if reference else None,
        "lesion_f1": ratio(len(matched), halves),
        "lesion_dice": ratio(sum(row["dice"] for row in matched), n_all),
        "panoptic_quality": ratio(sum(strict), halves),
    }
    ruled = {f"{name}_all": _all_cases(value, reference, pred) for name, value in scores.items()}
    return {
        "lesion_count_reference": len(reference),
        "lesion_count_pred": len(pred),
        "lesion_matched": len(matched),
        "lesion_missed": len(reference) - len(matched),
        "lesion_false_alarms": len(pred) - len(matched),
        "lesion_merged": sum(bool(row["merged"]) for row in pred),
        "lesion_split": sum(bool(row["split"]) for row in reference),
        **(scores if reference else dict.fromkeys(scores)),
        "lesion_recall_any_overlap": ratio(sum(bool(row["overlaps"]) for row in reference), len(reference)),
        "lesion_matched_dice": ratio(sum(row["dice"] for row in matched), len(matched)),
        "segmentation_quality": ratio(sum(strict), len(strict)),
        "recognition_quality": ratio(len(strict), halves) if reference else None,
        **ruled,
    }


def size_name(unit: str, dims: int) -> str:
    """What a size is called: "volume_ml", or of 2D maps "area_mm2" or "area_px"."""
    return "area_px" if unit == "px" else "volume_ml" if dims == 3 else "area_mm2"


def _measured(numbers: NDArray[np.int32], affine: ArrayLike, bounds: Sequence[float], unit: str) -> list[LesionRow]:
    """Number, size and place of each lesion, in the order of their numbers; the other columns as without a partner."""
    matrix = np.asarray(affine, dtype=np.float64)
    dims = numbers.ndim
    steps, origin = matrix[:-1, :dims], matrix[:-1, dims]
    edge = float(np.sqrt(np.linalg.det(steps.T @ steps)))  # mm3 or mm2 of a voxel
    flat = np.flatnonzero(numbers)
    of = numbers.reshape(-1)[flat]
    voxels = np.bincount(of)[1:]
    sums = [np.bincount(of, weights=index)[1:] for index in np.unravel_index(flat, numbers.shape)]
    places = np.stack(sums, axis=1) / np.maximum(voxels, 1)[:, None] @ steps.T + origin
    size = size_name(unit, dims)
    rows: list[LesionRow] = []
    for number, (count, place) in enumerate(zip(voxels.tolist(), places.tolist(), strict=True), start=1):
        full = count * edge
        diameter = (6 * full / np.pi) ** (1 / 3) if dims == 3 else (4 * full / np.pi) ** 0.5
        centroid = dict(zip((f"x_{unit}", f"y_{unit}", f"z_{unit}"), place, strict=False))
        rows.append(
            {
                "lesion": number,
                size: full / 1000 if size == "volume_ml" else full,
                f"diameter_{unit}": float(diameter),
                "size_bin": _size_bin(diameter, bounds, unit),
                "status": "",
                "partner": None,
                f"partner_{size}": None,
                "overlaps": [],
                "iou": 0.0,
                "dice": 0.0,
                "merged": False,
                "split": False,
                "score": None,
                **centroid,
                "_voxels": count,
            }
        )
    return rows


def _shared_voxels(reference: NDArray[np.int32], pred: NDArray[np.int32]) -> dict[tuple[int, int], int]:
    """Voxels that a reference lesion and a predicted lesion share, for the pairs that share any."""
    both = (reference > 0) & (pred > 0)
    width = int(pred.max(initial=0)) + 1
    pairs, counts = np.unique(reference[both].astype(np.int64) * width + pred[both], return_counts=True)
    return {(pair // width, pair % width): count for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}


def _touching(shared: Mapping[tuple[int, int], int]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Reference lesion -> predicted ones that overlap it, and the other way round."""
    of_reference: dict[int, list[int]] = {}
    of_pred: dict[int, list[int]] = {}
    for reference, pred in sorted(shared):
        of_reference.setdefault(reference, []).append(pred)
        of_pred.setdefault(pred, []).append(reference)
    return of_reference, of_pred


def _partners(
    shared: Mapping[tuple[int, int], int],
    reference: Sequence[LesionRow],
    pred: Sequence[LesionRow],
    match_iou: float,
) -> dict[tuple[int, int], tuple[float, float]]:
    """Pairs of partners and their IoU and Dice, one to one, largest IoU first (then the lower numbers)."""
    fits = {}
    for (one, other), voxels in shared.items():
        total = reference[one - 1]["_voxels"] + pred[other - 1]["_voxels"]
        fits[one, other] = voxels / (total - voxels), 2 * voxels / total
    chosen: dict[tuple[int, int], tuple[float, float]] = {}
    taken: tuple[set[int], set[int]] = set(), set()
    for pair in sorted(fits, key=lambda pair: (-fits[pair][0], pair)):
        if fits[pair][0] >= match_iou and pair[0] not in taken[0] and pair[1] not in taken[1]:
            chosen[pair] = fits[pair]
            taken[0].add(pair[0])
            taken[1].add(pair[1])
    return chosen


def _size_bin(diameter: float, bounds: Sequence[float], unit: str) -> str:
    inner = sorted(bounds)
    place = sum(diameter >= bound for bound in inner)
    if place == 0:
        return f"<{inner[0]:g} {unit}" if inner else "all"
    return f">={inner[-1]:g} {unit}" if place == len(inner) else f"{inner[place - 1]:g}-{inner[place]:g} {unit}"


def _all_cases(value: float | None, reference: Sequence[Any], pred: Sequence[Any]) -> float:
    """The second rule: a case without lesions is right if none is predicted; nothing predicted finds none."""
    if not reference:
        return 0.0 if pred else 1.0
    return 0.0 if value is None else value
