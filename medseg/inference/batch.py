"""A folder of scans: one mask and one row of the report for each case, whatever happens to it."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from medseg.bundle import Bundle
from medseg.errors import ConfigError
from medseg.inference.cases import Case
from medseg.inference.faults import NOBODYS, Cause, Failure, cause_of, one_line, what_to_do
from medseg.inference.ledger import Ledger
from medseg.inference.messages import NO_EXTRAS, Extras, Result, Row, Setup
from medseg.inference.settings import RunSettings
from medseg.inference.supervisor import Stop, Supervisor
from medseg.inference.tables import MASK_ENDING, Tables, further_paths, report_columns, with_own_columns
from medseg.inference.worker import InProcess, WorkerProcess
from medseg.notices import SYNTHETIC
from medseg.reading import ScanSource

if TYPE_CHECKING:
    from medseg.inference.sliding_window import Precision

__all__ = ["MASK_ENDING", "FolderRun", "Options", "Outcome", "predict_folder", "report_columns"]

STATUSES = {"done": "done", "edited": "edited", "failed": "failed", "busy": "pending"}  # of a decision, in the report
BUSY = "another process is at it"
WAIT_FOR_IT = "see how far it is (medseg status OUT), and run the same command once it has ended"
LANES = 2  # cases in a CPU's network at a time, where memory suffices; each takes a forward pass's memory of its own
LEAST_CASES = 4  # for that: of three the last would be alone, with half of the threads
TAKE_OVERS = 3  # looks, once all else is done, for cases that another process has left undone


@dataclass(frozen=True)
class Options:
    """How a folder is done.

    Attributes:
        precision: of the network, in place of the model's.
        mirroring: average over mirrored windows.
        redo: also where OUT was made with another model or other settings; all its cases are done again.
        retry_failed: do again what failed in an earlier run.
        verify: compare scans and masks byte for byte to tell whether they have changed.
        strict: stop at the first failure.
        limit: at most so many cases.
        isolate: do the cases in a process of their own, which is replaced when it dies, with stages that overlap.
        patience_s: how long that process may work on a stage without a word.
        root: folder of all scans, whose loss is no case's fault.
        extras: what a case gets beside its mask and its row; a case that lacks some of it is done again.
        parquet: write the tables as Parquet files too.
        gpu_memory_gb: of the GPU, at most; None for all that is free.
        hook: see `medseg.inference.messages.Setup`.
    """

    precision: "Precision | None" = None
    mirroring: bool = False
    redo: bool = False
    retry_failed: bool = False
    verify: bool = False
    strict: bool = False
    limit: int | None = None
    isolate: bool = False
    patience_s: float = 7200.0
    root: Path | None = None
    extras: Extras = NO_EXTRAS
    parquet: bool = False
    gpu_memory_gb: float | None = None
    hook: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a folder.

    Attributes:
        rows: one a case, with the columns of `report_columns`.
        stop: why it ended before the last case, if so.
        signal: number of the signal that ended it, if one did.
    """

    rows: list[Row]
    stop: Stop | None = None
    signal: int = 0


def predict_folder(
    cases: Sequence[Case | Mapping[str, Any]],
    out: Path,
    bundle: Bundle,
    *,
    device: str = "cpu",
    options: Options | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Segment cases; what OUT has of them already, made alike, is not made again.

    Writes `OUT/<case_id>_seg.nii.gz` on each scan's own grid (of a 2D image `_seg.png`, its values the labels),
    `report.csv` and `lesions.csv`. A case that fails becomes a row with its message; the others go on.

    Args:
        cases: as of `cases_in`, or samples `{"image": path or one path a channel, "case_id": ...}`.
        out: folder for masks and report; made if absent.
        bundle: the model.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
        options: how; by default in this process, one case after the other.
        on_row: called with the row of each case that this call has tried.

    Returns:
        One row a case, with the columns of `report_columns`.

    Raises:
        ConfigError: if the model or device cannot be used, or OUT was made with another model or settings.
        KeyboardInterrupt: after Ctrl-C; what is finished is kept.
    """
    run = FolderRun([as_case(case) for case in cases], out, bundle, device=device, options=options)
    outcome = run.do(on_row)
    if outcome.signal:
        raise KeyboardInterrupt
    return outcome.rows


def as_case(sample: Case | Mapping[str, Any]) -> Case:
    """A case, also of a sample of `medseg.data`."""
    if isinstance(sample, Case):
        return sample
    images = [sample["image"]] if isinstance(sample["image"], str | Path) else sample["image"]
    return Case(sample["case_id"], tuple(ScanSource(Path(image)) for image in images))


class FolderRun:
    """One run over the cases of a folder: decided when it is made, done by `do`.

    Args:
        cases: with unique ids.
        out: folder for masks and report; made if absent.
        bundle: the model.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
        options: how.
        dry: only decide; nothing is written, and the run cannot be done.

    Attributes:
        todo: the cases that are to be done.
        settings: what the masks depend on besides the scans.
        told: model, precision and device, as each row tells them.
        failed_before: cases that failed in an earlier run and are left so.

    Raises:
        ConfigError: if OUT was made with another model or other settings, or what is asked for is not to be had of the
            model.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        out: Path,
        bundle: Bundle,
        *,
        device: str = "cpu",
        options: Options | None = None,
        dry: bool = False,
    ) -> None:
        self.options = options or Options()
        _check_extras(self.options.extras, bundle)
        columns = report_columns(bundle.regions, bundle.unit, lesion_region=bundle.lesion_region)
        self.cases = [with_own_columns(case, columns) for case in cases]
        self.out, self.bundle, self.device = out, bundle, device
        self.settings = RunSettings.of(bundle, precision=self.options.precision, mirroring=self.options.mirroring)
        model = f"{bundle.name} {bundle.version}" + (f" ({SYNTHETIC})" if bundle.synthetic else "")
        self.told = {"model": model, "precision": self.settings.precision, "device": device}
        if dry:
            self.ledger = Ledger(out, self.settings)
        else:
            out.mkdir(parents=True, exist_ok=True)
            self.ledger = Ledger.open(out, self.settings, redo=self.options.redo)
        self.failed_before = 0
        self._rows: dict[str, Row] = {}
        self._lesions: dict[str, list[Row]] = {}
        self._held: list[tuple[Case, Row]] = []  # failures that may turn out not to be the case's fault
        self._put_off: list[Cause] = []
        self._elsewhere: set[str] = set()  # cases that another process was faster with
        listed = self.told if self.options.extras.pages else None
        self._tables = Tables(out, bundle, self.cases, told=listed, parquet=self.options.parquet)
        self._on_row: Callable[[Row], None] | None = None
        self._workers = 0  # started so far; after the first one's death, perhaps for want of memory, one lane must do
        self._supervisor = Supervisor(
            self._make_worker, self, strict=self.options.strict, patience_s=self.options.patience_s
        )
        self.todo = [case for case in self.cases if self._is_to_do(case)][: self.options.limit]

    @property
    def rows(self) -> list[Row]:
        """One row a case, as far as it is known; "pending" where it is not."""
        return list(self._rows.values())

    def do(self, on_row: Callable[[Row], None] | None = None) -> Outcome:
        """Do what is to be done; loads nothing if that is nothing.

        Args:
            on_row: called with the row of each case tried.

        Raises:
            ConfigError: if the model or device cannot be used.
        """
        self._on_row = on_row
        with self.ledger, _ending_gently(self._supervisor if self.options.isolate else None) as caught:
            self.ledger.start(len(self.cases))
            for case in self.cases:
                if case.problem:
                    self._tell(self._rows[case.case_id])
            stop, interrupted = self._do()
            rows, broken = self._finished_rows(stop)
        if stop is not None and stop.cause == "model" and not self._supervisor.device:  # it was never loaded
            raise ConfigError(stop.message)
        number = caught[0] if caught else (signal.SIGINT if interrupted else 0)
        return Outcome(rows, stop or broken, int(number))

    def _do(self) -> tuple[Stop | None, bool]:
        try:
            stop = self._supervisor.run(self.todo)
            for _ in range(TAKE_OVERS):
                if stop is None and (freed := self._freed()):
                    stop = self._supervisor.run(freed)
            if stop is None and self._put_off:
                stop = Stop(self._put_off[-1], f"{len(self._put_off)} cases failed {what_to_do(self._put_off[-1])}")
            if stop is None and self._elsewhere:
                count = len(self._elsewhere)
                cases = "1 case is" if count == 1 else f"{count} cases are"
                stop = Stop(None, f"{cases} in the hands of another process; {WAIT_FOR_IT}")
            return stop, False
        except KeyboardInterrupt:
            return Stop(None, "interrupted"), True
        except OSError as error:  # of OUT: records cannot be written
            return _no_record(error), False

    def _freed(self) -> list[Case]:
        """Cases that another process had, and has given back undone or died with; they are this run's now."""
        looked_at = [case for case in self.cases if case.case_id in self._elsewhere]
        freed = [case for case in looked_at if self._is_to_do(case)]
        self._elsewhere = {case.case_id for case in looked_at if self._rows[case.case_id].get("message") == BUSY}
        return freed

    # What the supervisor tells

    def claim(self, case: Case) -> bool:
        """Take a case for this run; False if another process has it."""
        taken = self.ledger.claim(case)
        if not taken:
            self._elsewhere.add(case.case_id)
        return taken

    def done(self, case: Case, result: Result) -> None:
        """Record a case that is done."""
        row = self._row(case) | result.row
        lesions = [{"case_id": case.case_id, **lesion} for lesion in result.lesions]
        self.ledger.record(case, row, lesions, inputs_sha256=result.inputs_sha256, mask=result.mask)
        self._lesions[case.case_id] = lesions
        self._tell(row)
        self._settle()

    def failed(self, case: Case, failure: Failure) -> None:
        """Note a case that has failed; it is recorded once it is known that the run can go on."""
        status = "pending" if failure.cause in NOBODYS else "failed"
        row = self._row(case) | {"status": status, "message": failure.message, "seconds": failure.seconds}
        self._lesions[case.case_id] = []
        if failure.cause in NOBODYS:
            self._put_off.append(failure.cause)
            self.ledger.release(case)
        else:
            self._held.append((case, row))
        self._tell(row)
        self._settle()

    def _settle(self) -> None:
        """Record the failures that are not part of a streak that may yet stop the run."""
        streak = set(self._supervisor.streak.case_ids)
        for case, row in [held for held in self._held if held[0].case_id not in streak]:
            self.ledger.record(case, row, [], further=further_paths(self.out, case, self.bundle))
            self._held.remove((case, row))
        self._tables.write_now_and_then(self._rows.values(), self._all_lesions())

    def _tell(self, row: Row) -> None:
        self._rows[row["case_id"]] = row
        if self._on_row is not None:
            self._on_row(row)

    # Rows

    def _is_to_do(self, case: Case) -> bool:
        """Whether to do a case; else its row is known already."""
        row = self._row(case)
        self._rows[case.case_id] = row | {"status": "pending", "message": ""}
        if case.skipped:
            self._rows[case.case_id] = row | {"status": "skipped", "message": case.skipped}
            return False
        if case.problem:
            self._rows[case.case_id] = row | {"status": "failed", "message": case.problem}
            return False
        decision = self.ledger.decide(case, verify=self.options.verify, retry_failed=self.options.retry_failed)
        if decision.action == "do":
            return True
        made = str((decision.row or {}).get("extras", "")).split(",")
        if decision.action == "done" and not self.options.extras.names <= set(made):
            return True
        self.failed_before += decision.action == "failed"
        status = {"status": STATUSES[decision.action]}
        if decision.action == "busy":
            status["message"] = BUSY
            if self.options.limit is None:
                self._elsewhere.add(case.case_id)
        self._rows[case.case_id] = row | dict(decision.row or {}) | status | dict(case.extra)
        return False

    def _row(self, case: Case) -> Row:
        told = self.told | ({"device": self._supervisor.device} if self._supervisor.device else {})
        return {**case.extra, "case_id": case.case_id, **told}

    def _finished_rows(self, stop: Stop | None) -> tuple[list[Row], Stop | None]:
        """All rows at the end, in the report too; and what kept the report from being written."""
        if stop is None or stop.cause is None:
            self._supervisor.streak.end()
        undone = set(self._supervisor.streak.case_ids)
        for case_id in undone:
            self._rows[case_id] |= {"status": "pending"}
        for case, _ in [held for held in self._held if held[0].case_id in undone]:
            self.ledger.release(case)
        self._held = [held for held in self._held if held[0].case_id not in undone]
        try:
            self._settle()
            self._freed()  # what others have done by now is in the report
            known = {row["case_id"]: row for row in self.ledger.rows()}
            others = {case_id: row for case_id, row in known.items() if case_id not in self._rows}
            self._tables.write((self._rows | others).values(), self.ledger.lesions())
        except OSError as error:
            return self.rows, _no_record(error)
        return self.rows, None

    def _all_lesions(self) -> Iterator[Row]:
        return (lesion for lesions in self._lesions.values() for lesion in lesions)

    def _make_worker(self) -> WorkerProcess | InProcess:
        setup = Setup(
            self.bundle,
            self.out,
            device=self.device,
            precision=self.options.precision,
            mirroring=self.options.mirroring,
            root=self.options.root,
            extras=self.options.extras,
            model=self.told["model"],
            gpu_memory_gb=self.options.gpu_memory_gb,
            lanes=LANES if len(self.todo) >= LEAST_CASES and not self._workers else 1,
            hook=self.options.hook,
        )
        self._workers += 1
        return WorkerProcess(setup) if self.options.isolate else InProcess(setup)


def _check_extras(extras: Extras, bundle: Bundle) -> None:
    asked = {"--formats": bool(extras.formats), "--instances": extras.instances}
    if bundle.unit == "px" and any(asked.values()):
        options = " and ".join(option for option, given in asked.items() if given)
        raise ConfigError(f"{options}: for scans in mm only, and this model is of 2D images; run it without")


def _no_record(error: OSError) -> Stop:
    cause: Cause = cause_of(error, "write")
    return Stop(cause, f"OUT cannot be written ({one_line(error)}), {what_to_do(cause)}")


@contextmanager
def _ending_gently(supervisor: Supervisor | None) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end a supervisor's run in order, a second one at once; the signals that came."""
    caught: list[int] = []
    if supervisor is None or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def end(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        supervisor.interrupted = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
