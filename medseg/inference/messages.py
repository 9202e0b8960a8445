"""What a folder's run and the process that does its cases say to each other; loads no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.bundle import Bundle
from medseg.inference.faults import Failure

if TYPE_CHECKING:
    from medseg.formats import Format
    from medseg.inference.sliding_window import Precision

Row = dict[str, Any]
Stage = Literal["read", "network", "write"]


@dataclass(frozen=True)
class Extras:
    """What a case gets beside its mask and its row.

    Attributes:
        pages: a page a case, and a list of all cases.
        formats: files beside the NIfTI mask.
        instances: a mask whose values are the lesions' numbers.
        confidence: a map of each voxel's confidence.
        probabilities: a file of all probabilities.
    """

    pages: bool = False
    formats: "tuple[Format, ...]" = ()
    instances: bool = False
    confidence: bool = False
    probabilities: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Short names, to see later whether a case has all that is asked for."""
        asked = {
            "pages": self.pages,
            "instances": self.instances,
            "confidence": self.confidence,
            "probabilities": self.probabilities,
        }
        return frozenset([*self.formats, *(name for name, wanted in asked.items() if wanted)])


NO_EXTRAS = Extras()


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know.

    Attributes:
        bundle: the model.
        out: folder for masks.
        device: where the network runs; "auto" takes a GPU if there is one.
        precision: of the network, in place of the bundle's.
        mirroring: average over mirrored windows.
        root: folder of all scans, whose loss is no case's fault.
        extras: what else a case gets.
        model: name and version, as pages tell them.
        gpu_memory_gb: of the GPU, at most; None for all that is free.
        lanes: cases in the network at a time, at most; see `medseg.inference.lanes`.
        hook: `module:function` of a test, called before each step of each case, to make it fail.
    """

    bundle: Bundle
    out: Path
    device: str = "cpu"
    precision: "Precision | None" = None
    mirroring: bool = False
    root: Path | None = None
    extras: Extras = NO_EXTRAS
    model: str = ""
    gpu_memory_gb: float | None = None
    lanes: int = 1
    hook: str = ""


@dataclass(frozen=True)
class Result:
    """A finished case.

    Attributes:
        row: of the report, as far as the worker knows it.
        lesions: rows of `lesions.csv`, without the case id.
        inputs_sha256: of the scan of each channel, in order.
        mask: where it was written.
    """

    row: Row
    lesions: list[Row]
    inputs_sha256: tuple[str, ...]
    mask: Path


@dataclass(frozen=True)
class Said:
    """A message of a worker.

    Attributes:
        what: "ready" (the model is loaded), "begun" (a stage of a case), "done", "failed", or "broken" (the worker
            has no model).
        case_id: of which case, if of one.
        stage: which has begun.
        result: of a case that is done.
        failure: of a case that failed, or of the worker.
        device: that the network runs on, once the model is loaded.
    """

    what: Literal["ready", "begun", "done", "failed", "broken"]
    case_id: str = ""
    stage: Stage = "read"
    result: Result | None = None
    failure: Failure | None = None
    device: str = ""
