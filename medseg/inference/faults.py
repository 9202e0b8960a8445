"""Why a case failed, and whether that is the case's own fault or that of its surroundings."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from medseg.errors import ConfigError, DataError

Cause = Literal["input", "memory", "device", "disk", "share", "model", "crash"]
Step = Literal["read", "prepare", "network", "finish", "measure", "write"]

IN_A_ROW = 10  # failures of one cause that is not the input: more of them would tell nothing new
NOBODYS: frozenset[Cause] = frozenset({"disk", "share"})  # never the case's own fault: the next run tries it again
LASTING: frozenset[Cause] = NOBODYS | {"device", "model"}  # two cases in a row at the end are not chance either

DISK_ERRORS = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
SHARE_ERRORS = {
    getattr(errno, name)
    for name in ("ESTALE", "EIO", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT", "EREMOTEIO")
    if hasattr(errno, name)  # Windows lacks some
}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "unable to allocate", "alloc_failed")
DEVICE_FAULT = ("cuda error", "cudaerror", "cublas_status", "cudnn error", "cudnn_status", "hip error", "cufft_")

WANTED: dict[Cause, str] = {
    "input": "a sound scan",
    "memory": "memory",
    "device": "a working GPU",
    "disk": "disk space",
    "share": "the folder of the scans",
    "model": "a working model",
    "crash": "a process that lives",
}
REMEDY: dict[Cause, str] = {
    "input": "see report.csv",
    "memory": "close other programs, or use a machine with more memory",
    "device": "check the GPU and its driver (medseg doctor), or use --device cpu",
    "disk": "free space on OUT's disk",
    "share": "reconnect the folder of the scans",
    "model": "check the model",
    "crash": "see that nothing else ends medseg's processes, and that memory suffices",
}


def what_to_do(cause: Cause) -> str:
    """What failures of a cause lacked, and what to do."""
    return f"for want of {WANTED[cause]}; {REMEDY[cause]}, then run the same command"


class Failure(NamedTuple):
    """Why a case, or the whole worker, failed.

    Attributes:
        cause: whose fault it was.
        message: one line for the report, without folders.
        step: in which step it happened.
        seconds: that were spent on the case.
    """

    cause: Cause
    message: str
    step: Step = "read"
    seconds: float | None = None

    @property
    def breaks_worker(self) -> bool:
        """Whether the process is of no use any more: after a fault of the GPU every further call fails as well."""
        return self.cause == "device"


def failure_of(error: BaseException, step: Step, *, root: Path | None = None) -> Failure:
    """What an error in a step of a case means.

    Args:
        error: as raised; what it was raised from counts too.
        step: in which step.
        root: folder of all scans; where it is gone, nothing that cannot be read is the case's fault.
    """
    cause = cause_of(error, step)
    if cause == "input" and step == "read" and root is not None and is_gone(root):
        return Failure("share", "the folder of the scans is gone", step)
    return Failure(cause, one_line(error), step)


def cause_of(error: BaseException, step: Step) -> Cause:
    """Whose fault an error is, from its type, its system error number and the words of torch."""
    for one in _chain(error):
        words = str(one).lower()
        if isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError":
            return "memory"
        if isinstance(one, RuntimeError) and any(sign in words for sign in OUT_OF_MEMORY):
            return "memory"
        if isinstance(one, RuntimeError) and any(sign in words for sign in DEVICE_FAULT):
            return "device"
        if isinstance(one, OSError) and one.errno == errno.ENOMEM:
            return "memory"
        if isinstance(one, OSError) and one.errno in DISK_ERRORS:
            return "disk"
        if isinstance(one, OSError) and one.errno in SHARE_ERRORS:
            return "share"
    if step == "write" and isinstance(error, OSError | EOFError | DataError):
        return "disk"
    if isinstance(error, ConfigError) or (step == "network" and not isinstance(error, DataError)):
        return "model"
    return "input"


def is_gone(folder: Path) -> bool:
    """Whether a folder, or a file, is not there, does not answer, or is the empty mount point of a lost share."""
    try:
        if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises on a stale share
            return not os.path.exists(folder)  # noqa: PTH110
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def one_line(error: BaseException) -> str:
    """The message of an error for the report: one line, without the folders that a system error names."""
    if isinstance(error, DataError | ConfigError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        file = f" ({Path(str(error.filename)).name})" if error.filename else ""
        return f"{type(error).__name__}: {error.strerror}{file}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


class Streak:
    """Counts failures of one cause in a row, over all cases that are neither done nor at fault themselves."""

    def __init__(self, longest: int = IN_A_ROW) -> None:
        self.longest = longest
        self.cause: Cause | None = None
        self.case_ids: list[str] = []

    def failed(self, case_id: str, cause: Cause) -> bool:
        """Count a failure; whether the run must stop now."""
        if cause != self.cause:
            self.end()
        if cause == "input":
            return False
        self.cause = cause
        self.case_ids.append(case_id)
        return len(self.case_ids) >= self.longest

    def end(self) -> None:
        """Forget the failures: a case was done."""
        self.cause, self.case_ids = None, []


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
