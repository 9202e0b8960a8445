"""The last line of a run that failed: what was wrong with data or recipe, below MONAI's and ignite's own words."""

import os
import re
import sys
import threading
import traceback
from types import TracebackType

from medseg.errors import ConfigError, DataError

LONGEST_CASE_S = 120  # nobody waits longer than this for a line about an error

# an error from a data-loading process comes as text, with its traceback in it
IN_WORKER = re.compile(r"^medseg\.errors\.(DataError|ConfigError): (.+)$", re.MULTILINE)


def end_with_our_line() -> None:
    """Let an uncaught error of this process end in one line of ours, the last one on stderr.

    With the environment variable `MEDSEG_ONE_LINE=1` that line is all, without the traceback.
    """
    sys.excepthook = _report


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
