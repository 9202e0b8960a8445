"""One case: read, checked, measured, named; many of them in processes of their own."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.evaluation.findings import Finding, findings
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.probabilities import memory_mb, read_probabilities
from medseg.geometry import grid_difference, spacing_mm
from medseg.memory import available_mb
from medseg.metrics import CaseMetrics, case_metrics
from medseg.reading import Scan, read_label

Status = Literal["judged", "failed", "missing"]
FEW_CASES = 8  # that are done sooner than processes start
MB_A_PROCESS = 1500  # without probabilities


@dataclass(frozen=True)
class Task:
    """A case to judge.

    Attributes:
        case_id: of the case.
        mask: the predicted mask; None for a case that failed.
        reference: the reference.
        judgment: what to judge by.
        message: why there is no mask.
        labeled: regions that were annotated; all if None.
        probabilities: file with the probabilities, if there is one.
        scores: of the predicted lesions by their numbers, if known without probabilities.
        tolerances_mm: of the surface Dice.
        mask_by_reader: whether the mask is another reader's, and its values mean what theirs do.
    """

    case_id: str
    mask: Path | None
    reference: Path
    judgment: Judgment
    message: str = ""
    labeled: tuple[str, ...] | None = None
    probabilities: Path | None = None
    scores: Mapping[int, float] = field(default_factory=dict)
    tolerances_mm: tuple[float, ...] = (2.0, 5.0)
    mask_by_reader: bool = False


@dataclass(frozen=True)
class Record:
    """A case that was judged, or the reason why it could not be.

    Attributes:
        case_id: of the case.
        status: "judged"; "failed" (no usable mask: counted as a failure); "missing" (no usable reference, or never
            asked for: named, not counted).
        message: why it is not judged.
        patient: who it is of.
        metrics: of the mask; of a failed case those of an empty mask, with the worst value by the second rule.
        findings: what is wrong.
        groups: name of a grouping -> the case's group.
        spacing: voxel edge lengths.
        seconds: that predicting took, where known.
    """

    case_id: str
    status: Status
    message: str = ""
    patient: str = ""
    metrics: CaseMetrics | None = None
    findings: tuple[Finding, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    spacing: tuple[float, ...] = ()
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """A line of `cases.jsonl`."""
        return asdict(self)

    @property
    def counted(self) -> bool:
        """Whether it is a case of the evaluation."""
        return self.metrics is not None


def judge_all(
    tasks: Sequence[Task], *, jobs: int | None = None, done: Callable[[], None] | None = None
) -> list[Record]:
    """A record a task, in their order.

    Args:
        tasks: the cases.
        jobs: processes; by cores, memory and number of cases if None.
        done: called after each case.
    """
    jobs = jobs or (1 if len(tasks) < FEW_CASES else fitting_jobs(tasks))
    if jobs == 1:
        return _listed(map(judge, tasks), done)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return _listed(pool.map(judge, tasks), done)


def fitting_jobs(tasks: Sequence[Task]) -> int:
    """How many processes this machine has room for, each with the largest array of probabilities."""
    arrays = [memory_mb(task.probabilities) for task in tasks if task.probabilities is not None]
    mb = MB_A_PROCESS + max(arrays, default=0)
    return max(1, min(os.cpu_count() or 1, available_mb() // mb, len(tasks)))


def judge(task: Task) -> Record:
    """Read and judge a case; what cannot be read is its record's message, and the other cases go on."""
    try:
        reference = read_label(task.reference, task.judgment.code_of_references())
    except DataError as error:
        return Record(task.case_id, "missing", f"the reference cannot be used: {error}")
    if task.judgment.ignore_label is not None and (reference.voxels == task.judgment.ignore_label).all():
        return Record(task.case_id, "missing", "nothing of the reference is labeled")
    if task.mask is None:
        return failed(task.case_id, reference, task.judgment, task.message, task.labeled, task.tolerances_mm)
    try:
        judgment = task.judgment
        code = judgment.code_of_references() if task.mask_by_reader else judgment.code_of_predictions()
        pred = read_label(task.mask, code)
        if differs := grid_difference(pred.voxels.shape, pred.affine, reference.voxels.shape, reference.affine):
            raise DataError(
                f"{task.mask.name}: not on the reference's grid ({differs}); write masks on the scan's own grid"
            )
        probabilities = None
        if task.probabilities is not None:
            probabilities = read_probabilities(task.probabilities, task.judgment, reference)
    except DataError as error:
        return failed(task.case_id, reference, task.judgment, str(error), task.labeled, task.tolerances_mm)
    return judge_arrays(
        task.case_id,
        pred.voxels,
        reference,
        task.judgment,
        labeled=task.labeled,
        probabilities=probabilities,
        scores=task.scores,
        tolerances_mm=task.tolerances_mm,
    )


def judge_arrays(
    case_id: str,
    pred: NDArray[np.generic],
    reference: Scan,
    judgment: Judgment,
    *,
    labeled: Sequence[str] | None = None,
    probabilities: Mapping[str, NDArray[Any]] | None = None,
    scores: Mapping[int, float] | None = None,
    tolerances_mm: Sequence[float] = (2.0, 5.0),
) -> Record:
    """The record of a mask that is in memory.

    Args:
        case_id: of the case.
        pred: label map on the reference's grid.
        reference: as it was read.
        judgment: what to judge by.
        labeled: regions that were annotated; all if None.
        probabilities: region -> probability on the same grid.
        scores: of the predicted lesions by their numbers, where there are no probabilities.
        tolerances_mm: of the surface Dice.
    """
    metrics = _metrics(pred, reference, judgment, labeled, tolerances_mm, probabilities)
    if scores and probabilities is None:
        for row in metrics.lesion_rows:
            if row["of"] == "pred":
                row["score"] = scores.get(row["lesion"])
    named = findings(metrics, pred, reference.voxels, reference.affine, unit=judgment.unit)
    return Record(case_id, "judged", "", "", metrics, tuple(named), {}, spacing_mm(reference.affine))


def failed(
    case_id: str,
    reference: Scan,
    judgment: Judgment,
    message: str,
    labeled: Sequence[str] | None = None,
    tolerances_mm: Sequence[float] = (2.0, 5.0),
) -> Record:
    """The record of a case without a usable mask: that of an empty mask, and the worst by the second rule.

    An empty mask would be right where the reference is empty too; a failure is not.
    """
    empty = np.zeros(reference.voxels.shape, dtype=np.uint8)
    metrics = _metrics(empty, reference, judgment, labeled, tolerances_mm, None)
    worst = diagonal(reference.voxels.shape, reference.affine)
    for scores in metrics.regions.values():
        for name in [name for name in scores if name.endswith("_all")]:
            scores[name] = worst if name.endswith(f"_{judgment.unit}_all") else 0.0
    if metrics.lesions is not None:
        metrics.lesions.update({name: 0.0 for name in metrics.lesions if name.endswith("_all")})
    reason = message or "no mask"
    return Record(
        case_id, "failed", reason, "", metrics, ({"kind": "failed", "text": reason},), {}, spacing_mm(reference.affine)
    )


def diagonal(shape: Sequence[int], affine: NDArray[np.float64]) -> float:
    """From corner to corner of a grid: the worst distance there is. An axis of length 1 does not count."""
    extent = np.array([size if size > 1 else 0 for size in shape])
    return max(float(np.linalg.norm(affine[:3, :3] @ (extent * signs))) for signs in product((1, -1), repeat=3))


def _metrics(
    pred: NDArray[np.generic],
    reference: Scan,
    judgment: Judgment,
    labeled: Sequence[str] | None,
    tolerances_mm: Sequence[float],
    probabilities: Mapping[str, NDArray[Any]] | None,
) -> CaseMetrics:
    affine = reference.affine
    voxels = reference.voxels
    if judgment.unit == "px" and voxels.ndim == 3 and voxels.shape[2] == 1:
        pred, voxels, affine = pred[..., 0], voxels[..., 0], np.eye(3)
        if probabilities is not None:
            probabilities = {name: one[..., 0] if one.ndim == 3 else one for name, one in probabilities.items()}
    return case_metrics(
        pred,
        voxels,
        affine,
        judgment.regions,
        lesion_region=judgment.lesion_region,
        ignore_label=judgment.ignore_label,
        labeled=labeled,
        tolerances_mm=tolerances_mm,
        probabilities=probabilities,
        unit=judgment.unit,
    )


def _listed(records: Iterable[Record], done: Callable[[], None] | None) -> list[Record]:
    listed = []
    for record in records:
        listed.append(record)
        if done is not None:
            done()
    return listed
