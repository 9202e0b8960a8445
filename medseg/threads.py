"""How torch's threads wait for each other. Standard library only: to be set before torch is imported."""

import os
import sys

SPIN_COUNT = "10000"  # about 0.1 ms; libgomp's own default is 300 000, and 100 once threads exceed cores


def wait_briefly() -> None:
    """Let OpenMP threads that wait for others spin for a moment, in this process and those that it starts.

    By default GNU's OpenMP, which torch uses on Linux, lets them spin for long, but hardly at all once threads exceed
    cores, as where steps of neighboring cases overlap: threads then fall asleep after every layer, and the network
    takes twice the time. This number holds in both cases, long enough to meet the other threads and short enough to
    leave the core to another program. LLVM's OpenMP, which some builds of torch for Linux use, would spin for ever
    by the same policy, so it gets its own word, a millisecond. What the user has set (`GOMP_SPINCOUNT`,
    `OMP_WAIT_POLICY`) stays, and on other systems, where torch has other OpenMP, nothing is set.

    Reference:
        GNU libgomp manual, "GOMP_SPINCOUNT"; LLVM OpenMP manual, "KMP_BLOCKTIME".
    """
    if not sys.platform.startswith("linux"):
        return
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"  # else the number counts no longer once threads exceed cores
        os.environ.setdefault("KMP_BLOCKTIME", "1")
