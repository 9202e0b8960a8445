"""What is wrong with a mask, in words: missed and merged lesions, a shift, extra organ pieces, nothing at all."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from medseg.geometry import bounding_box, connected_lesions
from medseg.metrics import CaseMetrics
from medseg.reading import Unit

TITLES = {
    "failed": "Failed cases",
    "edited": "Masks edited by a person",
    "shifted": "Shifted masks",
    "missed": "Missed lesions",
    "merged": "Merged lesions",
    "split": "Lesions in several pieces",
    "false_alarm": "False alarms",
    "extra_piece": "Extra organ pieces",
    "nothing": "Nothing predicted",
    "empty": "Empty references",
}
SHIFT_BELOW_DICE, SHIFT_GAIN, SHIFT_FIT = 0.9, 0.1, 0.8
EXTRA_SHARE = 0.01  # of the region's own size: smaller pieces are specks, not organs
DIRECTIONS = (("left", "right"), ("back", "front"), ("feet", "head"))
MOST_NAMED = 8  # lesions in a sentence


class Finding(TypedDict):
    """One thing that is wrong: its `kind`, a key of `TITLES`, and a sentence."""

    kind: str
    text: str


def findings(
    metrics: CaseMetrics,
    pred: NDArray[np.generic],
    reference: NDArray[np.generic],
    affine: NDArray[np.float64],
    *,
    unit: Unit = "mm",
) -> list[Finding]:
    """What is wrong with a mask, worst first.

    Args:
        metrics: of the case.
        pred: label map `(X, Y, Z)`.
        reference: label map on the same grid.
        affine: `(4, 4)`, voxel index to RAS mm.
        unit: of the affine.
    """
    regions, lesion_region = metrics.settings["regions"], metrics.settings["lesion_region"]
    ignored = metrics.settings["ignore_label"]
    if ignored is not None:
        pred, reference = (np.where(reference == ignored, 0, labels) for labels in (pred, reference))
    box = bounding_box((pred != 0) | (reference != 0)) or (slice(None),)
    pred, reference = np.ascontiguousarray(pred[box]), np.ascontiguousarray(reference[box])
    found = _shifts(metrics, pred, reference, affine, unit)
    found += _of_lesions(metrics.lesion_rows, unit)
    for name, scores in metrics.regions.items():
        if scores["empty"] == "pred":
            text = f"no {name} predicted{_strange(pred, regions)}, and there is {_size(scores, unit)}"
            found.append({"kind": "nothing", "text": text})
        elif scores["empty"] == "both":
            text = f"no {name} in the reference{_strange(reference, regions)}, and none predicted"
            found.append({"kind": "empty", "text": text})
        elif scores["empty"] == "reference":
            wrong = _size(scores, unit, of="pred")
            text = f"no {name} in the reference{_strange(reference, regions)}, but {wrong} predicted"
            found.append({"kind": "empty", "text": text})
        elif name != lesion_region:
            voxels = [np.isin(labels, regions[name]) for labels in (pred, reference)]
            found += _extra_pieces(name, voxels[0], voxels[1], scores, unit)
    return found


def _strange(labels: NDArray[np.generic], regions: Mapping[str, Sequence[int]]) -> str:
    """Label values that mean nothing here, said where a region is absent: perhaps they were meant for it."""
    known = {0, *(value for values in regions.values() for value in values)}
    strange = [str(value) for value in np.unique(labels).tolist() if value not in known]
    more = ", ..." if len(strange) > MOST_NAMED else ""
    return f" (it has label values of no region: {', '.join(strange[:MOST_NAMED])}{more})" if strange else ""


def _of_lesions(rows: Sequence[Mapping[str, Any]], unit: Unit) -> list[Finding]:
    """Missed, merged and split lesions and false alarms, from the rows of a case."""
    reference = [row for row in rows if row["of"] == "reference"]
    pred = [row for row in rows if row["of"] == "pred"]
    found: list[Finding] = []
    missed = [row for row in reference if row["status"] == "missed"]
    if missed:
        touched = sum(bool(row["overlaps"]) for row in missed)
        more = f"; {touched} of them touched, too little to count as found" if touched else ""
        text = f"{len(missed)} of {len(reference)} lesions missed: {_named(missed, unit)}{more}"
        found.append({"kind": "missed", "text": text})
    for row in pred:
        if row["merged"]:
            numbers = " and ".join(map(str, row["overlaps"]))
            text = f"predicted lesion {row['lesion']} flows over lesions {numbers} of the reference"
            found.append({"kind": "merged", "text": text})
    for row in reference:
        if row["split"]:
            text = f"lesion {row['lesion']} of the reference falls into {len(row['overlaps'])} predicted ones"
            found.append({"kind": "split", "text": text})
    alarms = [row for row in pred if row["status"] == "false_alarm"]
    if alarms:
        found.append({"kind": "false_alarm", "text": f"{len(alarms)} predicted where none is: {_named(alarms, unit)}"})
    return found


def _shifts(
    metrics: CaseMetrics,
    pred: NDArray[np.generic],
    reference: NDArray[np.generic],
    affine: NDArray[np.float64],
    unit: Unit,
) -> list[Finding]:
    """Regions that fit once the prediction is moved by the difference of the two centers."""
    found: list[Finding] = []
    for name, values in metrics.settings["regions"].items():
        scores = metrics.regions.get(name, {"empty": "both"})
        dice = float(scores.get("dice") or 0)
        if scores["empty"] != "neither" or dice >= SHIFT_BELOW_DICE:
            continue
        one, other = np.isin(pred, values), np.isin(reference, values)
        steps = np.rint(_center(other) - _center(one)).astype(int)
        if not steps.any():
            continue
        fit = float(2 * (_moved(one, steps) & other).sum() / (one.sum() + other.sum()))
        if fit >= SHIFT_FIT and fit - dice >= SHIFT_GAIN:
            how = _distance(-steps, affine, unit)
            found.append({"kind": "shifted", "text": f"{name} shifted {how}: Dice {dice:.2f}, moved back {fit:.2f}"})
    return found


def _extra_pieces(
    name: str, pred: NDArray[np.bool_], reference: NDArray[np.bool_], scores: Mapping[str, Any], unit: Unit
) -> list[Finding]:
    """Pieces of an organ that lie wholly outside it."""
    box = bounding_box(pred)
    if box is None:
        return []
    numbers = connected_lesions(pred[box])
    sizes = np.bincount(numbers.reshape(-1))[1:]
    outside = np.setdiff1d(np.arange(1, len(sizes) + 1), numbers[reference[box]])
    extra = [int(sizes[number - 1]) for number in outside if sizes[number - 1] >= EXTRA_SHARE * reference.sum()]
    if not extra:
        return []
    size = _size(scores, unit, voxels=sum(extra))
    pieces = "1 piece" if len(extra) == 1 else f"{len(extra)} pieces"
    return [{"kind": "extra_piece", "text": f"{name} has {pieces} outside the reference's, {size}"}]


def _size(scores: Mapping[str, Any], unit: Unit, *, of: str = "reference", voxels: int | None = None) -> str:
    """A region's size, or that of so many of its voxels, in the unit that the metrics have."""
    name = next(key for key in scores if key.startswith(f"{of}_")).removeprefix(f"{of}_")
    value = float(scores[f"{of}_{name}"])
    if voxels is not None:
        predicted = float(scores[f"pred_{name}"])
        value = predicted * voxels / (int(scores["tp"]) + int(scores["fp"]))
    return f"{value:.0f} px" if unit == "px" else f"{value:.1f} {'mL' if name == 'ml' else name}"


def _named(rows: Sequence[Mapping[str, Any]], unit: Unit) -> str:
    """Lesions with their diameters."""
    told = [f"lesion {row['lesion']} ({row[f'diameter_{unit}']:.0f} {unit})" for row in rows[:MOST_NAMED]]
    return ", ".join(told) + (f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else "")


def _distance(steps: NDArray[np.int_], affine: NDArray[np.float64], unit: Unit) -> str:
    if unit == "px":
        return f"by {np.linalg.norm(steps):.0f} px"
    moved = affine[:3, :3] @ steps
    axis = int(np.abs(moved).argmax())
    return f"by {np.linalg.norm(moved):.0f} mm, mostly to the {DIRECTIONS[axis][int(moved[axis] > 0)]}"


def _center(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean place of a mask's voxels, in voxels; from its shadow on each axis, which needs little memory."""
    shadows = [mask.sum(axis=tuple(a for a in range(mask.ndim) if a != axis)) for axis in range(mask.ndim)]
    return np.array([np.average(np.arange(len(shadow)), weights=shadow) for shadow in shadows])


def _moved(mask: NDArray[np.bool_], steps: NDArray[np.int_]) -> NDArray[np.bool_]:
    """A mask moved by whole voxels; what leaves the grid is gone."""
    moved = np.zeros_like(mask)
    into = tuple(slice(max(step, 0), size + min(step, 0)) for step, size in zip(steps, mask.shape, strict=True))
    out_of = tuple(slice(max(-step, 0), size + min(-step, 0)) for step, size in zip(steps, mask.shape, strict=True))
    moved[into] = mask[out_of]
    return moved
