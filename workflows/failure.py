"""The last line of a run that failed: what was wrong with data or recipe, below MONAI's and ignite's own words."""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from medseg.errors import ConfigError, DataError

STOPPED_BY = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
LONGEST_CASE_S = 120  # nobody waits longer than this for a line about an error

# an error from a data-loading process comes as text, with its traceback in it
IN_WORKER = re.compile(r"^medseg\.errors\.(DataError|ConfigError): (.+)$", re.MULTILINE)


def end_with_our_line() -> None:
    """Let an uncaught error of this process end in one line of ours, the last one on stderr.

    With the environment variable `MEDSEG_ONE_LINE=1` that line is all, without the traceback.
    """
    sys.excepthook = _report


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block by `SystemExit` with 130 and 143, the last line saying so.

    Only the first signal counts, so that a second one (as from a process group) cannot cut short the closing of a run.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may handle signals
        yield
        return
    before = {number: signal.signal(number, _stop) for number in STOPPED_BY}
    try:
        yield
    except Stopped as stopped:
        sys.stdout.flush()
        sys.stderr.write(f"medseg: stopped by {STOPPED_BY[stopped.number]}\n")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(SystemExit):
    """A signal asked the process to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)  # as shells tell it
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> None:
    for each in STOPPED_BY:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number))


def failure_line(error: BaseException) -> str:
    """One line for an error: the DataError or ConfigError that led to it, else its first cause."""
    chain = _chain(error)
    for cause in chain:
        if isinstance(cause, DataError | ConfigError) and not IN_WORKER.search(str(cause)):
            return _one_line(type(cause).__name__, str(cause))
    for cause in chain:
        if found := IN_WORKER.findall(str(cause)):
            return _one_line(*found[-1])
    return _one_line(type(chain[-1]).__name__, str(chain[-1]))


def _chain(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from, and so on."""
    chain, cause = [error], error
    while following := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__):
        if following in chain:
            break
        chain.append(following)
        cause = following
    return chain


def _one_line(kind: str, message: str) -> str:
    return f"medseg: {kind}: {'; '.join(line.strip() for line in message.splitlines() if line.strip())}"


def _wait_for_pools() -> None:
    """Let MONAI's caching threads finish the case they are at.

    Python ends such a thread inside the C++ code it runs, and the process then aborts with words below ours.
    """
    for thread in threading.enumerate():
        if thread.daemon and "(worker)" in thread.name:  # as multiprocessing.pool names its threads
            thread.join(timeout=LONGEST_CASE_S)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if os.environ.get("MEDSEG_ONE_LINE") != "1":
        traceback.print_exception(kind, error, trace)
    line = "medseg: stopped by Ctrl-C" if issubclass(kind, KeyboardInterrupt) else failure_line(error)
    _wait_for_pools()
    sys.stdout.flush()
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
