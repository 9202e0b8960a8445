"""What is done with one case: read and prepared, segmented, written and measured; each in its own thread if wanted."""

import medseg.quick_torch  # noqa: F401  # isort: skip (before torch)

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.inference.cases import Case
from medseg.inference.estimates import needs_of_scans
from medseg.inference.extras import CaseExtras
from medseg.inference.faults import Failure, Step, cause_of, failure_of
from medseg.inference.messages import Result, Row, Setup
from medseg.inference.predictor import Answer
from medseg.inference.tables import AGREEMENT, CONFIDENCE, mask_path
from medseg.inference.training_range import outside_range
from medseg.memory import peak_memory_mb
from medseg.reading import Header, Scan, read_channels, read_header, scan_stem
from medseg.reading.plausibility import check_hu
from medseg.regions import LabelFacts, Lesions
from medseg.report.measurements import measure, measure_image
from medseg.writing import write_mask_png, write_nifti

Label = NDArray[np.unsignedinteger[Any]]
Hook = Callable[[Step, str], None]  # of tests: called before each step of each case, to make it fail


class Segmenter(Protocol):
    """What the stages ask of a predictor; `medseg.inference.Predictor` is one."""

    def prepare(self, scans: Sequence[Scan]) -> Any:
        """Channels of a case -> what the network sees, with `notes` for the report."""

    def answer(self, prepared: Any, *, probabilities: Path | None = None) -> Answer:
        """Labels on the first channel's own grid, and how sure of them the network is."""

    def finish(self, label: Label, scans: Sequence[Scan]) -> tuple[Label, tuple[str, ...]]:
        """Labels after the clean-up rules, and what these did."""

    def less_memory(self) -> str | None:
        """Use less memory from now on; how, or None if no less is possible."""


@dataclass
class Job:
    """A case on its way through the stages."""

    case: Case
    step: Step = "read"
    since: float = 0.0
    need_mb: float = 0.0
    seconds: float = 0.0
    scans: tuple[Scan, ...] = ()
    prepared: Any = None
    answer: Answer | None = None
    probabilities: Path | None = None
    flags: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    result: Result | None = None


class Stages:
    """The three stages of a case, for one model.

    Args:
        predictor: segments.
        setup: what a worker needs to know.
        device: where the network runs.
        check_disk: raises OSError if there is no room for a mask of so many MB in a folder.
        hook: see `Hook`.
    """

    def __init__(
        self,
        predictor: Segmenter,
        setup: Setup,
        *,
        device: str = "cpu",
        check_disk: Callable[[Path, float], None],
        hook: Hook | None = None,
    ) -> None:
        self.predictor, self.bundle, self.out, self.root = predictor, setup.bundle, setup.out, setup.root
        self.device, self.check_disk, self.hook = device, check_disk, hook
        self._training_range = setup.bundle.metadata.get("training_range")
        precision = setup.precision or setup.bundle.precision
        self.extras = CaseExtras(setup.bundle, setup.out, setup.extras, model=setup.model, precision=precision)

    def read(self, job: Job) -> None:
        """Voxels of all channels, prepared for the network."""
        job.since = time.monotonic()
        self._begin(job, "read")
        sources = job.case.sources
        job.scans = read_channels(sources, self.bundle.channels)
        if self.bundle.modality == "CT":
            names = [source.path.name for source in sources] * len(job.scans)  # one file may hold all channels
            job.scans = tuple(check_hu(scan, name) for scan, name in zip(job.scans, names, strict=False))
        headers = [Header(scan.voxels.shape, scan.affine, "", scan.voxels.nbytes) for scan in job.scans]
        self.check_disk(self.out, needs_of_scans(headers, self.bundle, self.extras.extras).disk_mb)
        job.warnings += [warning for scan in job.scans for warning in scan.warnings]
        job.flags += outside_range(job.scans, self._training_range)
        self._begin(job, "prepare")
        with torch.inference_mode():
            job.prepared = self.predictor.prepare(job.scans)
        job.notes += job.prepared.notes
        job.seconds += time.monotonic() - job.since

    def network(self, job: Job) -> None:
        """Labels of the network; where memory does not suffice, again with less at a time."""
        job.since = time.monotonic()
        job.probabilities = self.extras.probability_file(job.case)
        while job.answer is None:
            try:
                self._begin(job, "network")
                with torch.inference_mode():
                    job.answer = self.predictor.answer(job.prepared, probabilities=job.probabilities)
            except (MemoryError, RuntimeError) as error:
                less = self.predictor.less_memory() if cause_of(error, "network") == "memory" else None
                if less is None:
                    raise
                job.warnings.append(f"memory did not suffice: {less}")
        job.prepared = None
        job.seconds += time.monotonic() - job.since

    def write(self, job: Job) -> None:
        """Mask cleaned up, measured and on disk."""
        job.since = time.monotonic()
        self._begin(job, "finish")
        answer = job.answer
        if answer is None:
            raise RuntimeError("no label map to write")
        label, notes = self.predictor.finish(answer.label, job.scans)
        self._begin(job, "measure")
        facts = LabelFacts.of(label)
        before = facts if label is answer.label else LabelFacts.of(answer.label)
        region = self.bundle.lesion_region
        found = None if region is None else Lesions.of(facts, self.bundle.regions[region])
        measured, lesions = self._measure(facts, found, job.scans[0])
        doubts = self._doubts(answer, label, found, lesions)
        measured |= {f"{name}{ending}": value for ending, each in doubts.items() for name, value in each.items()}
        confidence, agreement = doubts[CONFIDENCE], doubts[AGREEMENT]
        flags = self.extras.flags(facts, before, job.scans[0].affine, confidence=confidence, agreement=agreement)
        flags = [*job.flags, *flags]
        told: Row = {"flags": flags, "warnings": job.warnings, "notes": [*job.notes, *notes], **measured}
        self._begin(job, "write")
        job.warnings += self.extras.write(
            job.case,
            job.scans[0],
            facts,
            row=told,
            lesions=lesions,
            found=found,
            answer=answer,
            probabilities=job.probabilities,
        )
        # the mask last: once it is there it is soon recorded
        target = mask_path(self.out, job.case, self.bundle)
        if self.bundle.unit == "px":
            write_mask_png(label, target)
        else:
            write_nifti(label, job.scans[0].affine, target)
        job.seconds += time.monotonic() - job.since
        row: Row = {
            "status": "done",
            "message": "",
            "flags": "; ".join(flags),
            "warnings": "; ".join(job.warnings),
            "notes": "; ".join([*job.notes, *notes]),
            **measured,
            "seconds": round(job.seconds, 2),
            "peak_memory_mb": self.peak_memory_mb(),
            "extras": ",".join(sorted(self.extras.extras.names)),
        }
        job.result = Result(row, lesions, tuple(scan.sha256 for scan in job.scans), target)
        _forget(job)

    def need_mb(self, case: Case) -> float:
        """Estimated memory of a case, 0 where a header cannot be read: its reading will say why."""
        try:
            return needs_of_scans([read_header(source) for source in case.sources], self.bundle).memory_mb
        except Exception:  # an error here would cost the thread that reads
            return 0.0

    def failure(self, job: Job, error: Exception) -> Failure:
        """What an error in the step of a job means, for the report; frees what the job holds."""
        _forget(job)
        failure = failure_of(error, job.step, root=self.root)
        seconds = round(job.seconds + time.monotonic() - job.since, 2)
        return failure._replace(message=without_names(failure.message, job.case), seconds=seconds)

    def peak_memory_mb(self) -> int:
        """Largest memory held so far, in MB: the GPU's where one is used, else the process's."""
        if self.device.startswith("cuda"):
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20)
        return peak_memory_mb()

    def _begin(self, job: Job, step: Step) -> None:
        job.step = step
        if self.hook is not None:
            self.hook(step, job.case.case_id)

    def _doubts(
        self, answer: Answer, label: Label, found: Lesions | None, lesions: Sequence[Row]
    ) -> dict[str, Mapping[str, float]]:
        """Confidence and agreement of each region, by the ending of its column; lesions get their probability."""
        if answer.confidence is None:
            return {CONFIDENCE: {}, AGREEMENT: answer.agreement}
        region = self.bundle.lesion_region
        if region is not None and found is not None:
            means = answer.confidence.of_lesions(answer.label, region, found)
            for lesion, mean in zip(lesions, means, strict=True):
                lesion["mean_probability"] = mean
        means_of_regions = answer.confidence.means(answer.label, None if label is answer.label else label)
        return {CONFIDENCE: means_of_regions, AGREEMENT: answer.agreement}

    def _measure(self, facts: LabelFacts, found: Lesions | None, scan: Scan) -> tuple[Row, list[Row]]:
        regions, lesion_region = self.bundle.regions, self.bundle.lesion_region
        if self.bundle.unit == "px":
            return measure_image(facts, regions=regions, lesion_region=lesion_region, found=found)
        hu = scan.voxels if self.bundle.modality == "CT" else None
        return measure(facts, scan.affine, regions=regions, lesion_region=lesion_region, found=found, hu=hu)


def _forget(job: Job) -> None:
    """Free what a job holds, on the disk too."""
    if job.probabilities is not None:
        with suppress(OSError):  # neither a finished mask nor the message of a failure hangs on it; later runs sweep
            job.probabilities.unlink(missing_ok=True)
    job.scans, job.prepared, job.answer, job.probabilities = (), None, None, None


def without_names(message: str, case: Case) -> str:
    """A message in which folders are gone, and of a case with a pseudonym also the names of its files."""
    for source in case.sources:
        message = message.replace(f"{source.path.parent}{os.sep}", "").replace(str(source.path.parent), "")
        if case.keyed:
            for name in (source.path.name, scan_stem(source.path)):
                message = message.replace(name, case.case_id) if name else message
    return message
