"""Keeps a worker at its cases: replaces it when it dies, tries a case again, stops when nothing can succeed."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from medseg.inference.cases import Case
from medseg.inference.faults import LASTING, Cause, Failure, Streak, what_to_do
from medseg.inference.messages import Result, Said, Stage
from medseg.inference.worker import STOP_S, Worker, WorkerDiedError

TRIES = 2  # of a case that a worker died of
WAIT_S = 0.25  # between two looks for Ctrl-C
START_S = 900.0  # longest wait for the model: a cold file server and a first CUDA start take minutes


class Stop(NamedTuple):
    """Why a run ended before its last case.

    Attributes:
        cause: whose fault it was; None for a wish of the user.
        message: one line, with what to do.
    """

    cause: Cause | None
    message: str


class Journal(Protocol):
    """Who is told what became of each case."""

    def claim(self, case: Case) -> bool:
        """Take a case for this run; False if another process has it."""

    def done(self, case: Case, result: Result) -> None:
        """A case is done."""

    def failed(self, case: Case, failure: Failure) -> None:
        """A case has failed, for good."""


class Supervisor:
    """Hands cases to a worker until all are done or have failed.

    After the death of a worker the cases that were inside are done again one at a time, so that a second death is
    known to be the case's.

    Args:
        make_worker: starts a worker, which loads the model.
        journal: is told what became of each case.
        strict: stop at the first failure.
        patience_s: how long a worker may work on a stage without a word.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], journal: Journal, *, strict: bool = False, patience_s: float = 7200.0
    ) -> None:
        self.make_worker, self.journal, self.strict, self.patience_s = make_worker, journal, strict, patience_s
        self.streak = Streak()
        self.device = ""
        self.interrupted = False  # set by a signal's handler
        self._worker: Worker | None = None
        self._waiting: deque[Case] = deque()
        self._alone: deque[Case] = deque()
        self._inside: dict[str, Case] = {}
        self._stages: dict[str, Stage] = {}
        self._deaths: Counter[str] = Counter()

    def run(self, cases: Iterable[Case]) -> Stop | None:
        """Do the cases; why not all of them, if so."""
        self._waiting.extend(cases)
        stop: Stop | None = None
        try:
            while stop is None and (self._waiting or self._alone or self._inside):
                stop = Stop(None, "interrupted") if self.interrupted else self._step()
            if stop is not None and self._worker is not None:
                self._let_writing_end(self._worker)
        finally:
            if self._worker is not None:
                self._worker.kill()
                self._worker = None  # another call starts its own
        if stop is None and self.streak.cause in LASTING and len(self.streak.case_ids) > 1:
            return self._stop_for(self.streak.cause)
        return stop

    def _step(self) -> Stop | None:
        """Hand in what fits, and hear one message."""
        try:
            if self._worker is None:
                stop = self._start()
                if stop is not None or self.interrupted or self._worker is None:
                    return stop
            self._hand_in(self._worker)
            said = self._worker.next_word(WAIT_S, patience_s=self.patience_s) if self._inside else None
        except WorkerDiedError as error:
            return self._after_death(str(error))
        return None if said is None else self._hear(said)

    def _start(self) -> Stop | None:
        """Start a worker and wait for its model."""
        started = time.monotonic()
        worker = self._worker = self.make_worker()
        while not self.interrupted:
            said = worker.next_word(WAIT_S, patience_s=START_S)
            if said is not None and said.what == "ready":
                self.device = said.device
                return None
            if said is not None and said.failure is not None:
                return Stop(said.failure.cause, said.failure.message)
            if time.monotonic() - started > START_S:
                raise WorkerDiedError(f"did not load the model within {START_S:.0f} s")
        return None

    def _hand_in(self, worker: Worker) -> None:
        if self._alone:
            if not self._inside:
                self._put(worker, self._alone.popleft())
            return
        while self._waiting and len(self._inside) < worker.at_once:
            case = self._waiting.popleft()
            if self.journal.claim(case):
                self._put(worker, case)

    def _put(self, worker: Worker, case: Case) -> None:
        self._inside[case.case_id] = case
        worker.put(case)

    def _hear(self, said: Said) -> Stop | None:
        if said.what == "begun":
            self._stages[said.case_id] = said.stage
            return None
        case = self._inside.pop(said.case_id)
        if said.result is not None:
            self.streak.end()
            self.journal.done(case, said.result)
            return None
        failure = said.failure or Failure("crash", "failed without a word")
        neighbors = bool(self._inside)
        if failure.breaks_worker:
            self._replace()
        tried = self._deaths[case.case_id]
        if tried + 1 < TRIES and (failure.breaks_worker or (failure.cause == "memory" and neighbors)):
            self._deaths[case.case_id] += 1
            self._alone.append(case)
            return None
        return self._fail(case, failure)

    def _replace(self) -> None:
        """Give up a worker whose GPU is lost; cases that only stood beside the faulty one wait again."""
        if self._worker is not None:
            self._let_writing_end(self._worker)
            self._worker.kill()
        self._worker = None
        self._alone.extend(self._inside.values())
        self._inside.clear()

    def _after_death(self, how: str) -> Stop | None:
        """Try again what was inside; what has seen two deaths has failed."""
        if self._worker is not None:
            self._worker.kill()
        self._worker = None
        inside = list(self._inside.values())
        self._inside.clear()
        if not inside:  # it died before its first case
            self._deaths[""] += 1
            return None if self._deaths[""] < TRIES else Stop("crash", f"the process for the cases {how}, twice")
        stop = None
        for case in inside:
            self._deaths[case.case_id] += 1
            if self._deaths[case.case_id] < TRIES:
                self._alone.append(case)
            else:
                stop = self._fail(case, Failure("crash", f"the process that did it {how}, twice; report this scan"))
        return stop

    def _fail(self, case: Case, failure: Failure) -> Stop | None:
        enough = self.streak.failed(case.case_id, failure.cause)
        self.journal.failed(case, failure)
        if enough:
            return self._stop_for(failure.cause)
        return Stop(None, "at the first failure, as --strict asks") if self.strict else None

    def _stop_for(self, cause: Cause) -> Stop:
        return Stop(cause, f"{len(self.streak.case_ids)} cases in a row failed {what_to_do(cause)}")

    def _let_writing_end(self, worker: Worker) -> None:
        """Wait, not long, for masks that are being written; what the worker has said by now is heard in any case."""
        worker.stop()
        end = time.monotonic() + STOP_S
        try:
            while time.monotonic() < end:
                writing = any(self._stages.get(id) == "write" for id in self._inside)
                said = worker.next_word(WAIT_S if writing else 0.0, patience_s=math.inf)
                if said is None:
                    if not writing:
                        return
                elif said.what == "begun":
                    self._stages[said.case_id] = said.stage
                elif said.result is not None:
                    self.journal.done(self._inside.pop(said.case_id), said.result)
                else:
                    self._stages[said.case_id] = "read"  # failed: it stays undone
        except WorkerDiedError:
            return
