"""Evaluation folders with planted figures, from masks that `case_metrics` judges."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.metrics import case_metrics

SIDE, MARGIN = 10, 3


def box_metrics(missed: int) -> dict[str, Any]:
    """Metrics of a box of 1000 voxels of which the prediction lacks so many."""
    reference = np.zeros((SIDE + 2 * MARGIN,) * 3, dtype=np.uint8)
    inner = slice(MARGIN, MARGIN + SIDE)
    reference[inner, inner, inner] = 1
    pred = reference.copy()
    pred[tuple(index[:missed] for index in np.nonzero(reference))] = 0
    return asdict(case_metrics(pred, reference, (1.0, 1.0, 2.0), {"liver": [1]}, definitions=("voxel",)))


def missed_for(dice: float) -> int:
    """How many voxels to miss for such a Dice: 2 (1000 - m) / (2000 - m)."""
    size = SIDE**3
    return int(np.clip(round((2 * size - 2 * size * dice) / (2 - dice)), 0, size))


def write_evaluation(
    folder: Path,
    dice: Mapping[str, float],
    *,
    metrics: Callable[[int], dict[str, Any]] = box_metrics,
    about: Mapping[str, Any] | None = None,
    failed: Sequence[str] = (),
    patients: Mapping[str, str] | None = None,
) -> Path:
    """An evaluation whose cases have such Dice, in the form that `medseg evaluate` writes."""
    folder.mkdir(parents=True)
    lines = [
        {
            "case_id": case_id,
            "status": "failed" if case_id in failed else "judged",
            "message": "no mask" if case_id in failed else "",
            "patient": (patients or {}).get(case_id, ""),
            "metrics": metrics(missed_for(value)),
        }
        for case_id, value in dice.items()
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"about": {"model": "boxes", "split": "test", **(about or {})}}))
    return folder


def case_ids(n: int) -> list[str]:
    return [f"case_{number:03}" for number in range(n)]


def planted(n: int, gain: float, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Dice of a first model, and of a second that is better by `gain` on average; both vary from case to case."""
    random = np.random.default_rng(seed)
    first: NDArray[np.float64] = np.clip(random.normal(0.85, 0.06, n), 0.3, 0.97)
    second = np.clip(first + random.normal(gain, 0.03, n), 0.3, 0.99)
    ids = case_ids(n)
    return dict(zip(ids, first.tolist(), strict=True)), dict(zip(ids, second.tolist(), strict=True))
