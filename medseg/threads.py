"""How torch's threads wait for each other. Standard library only: to be set before torch is imported."""

import os

SPIN_COUNT = "10000"  # about 0.1 ms; libgomp's own default is 300 000, and 100 once threads exceed cores


def wait_briefly() -> None:
    """Let OpenMP threads that wait for others spin for a moment, in this process and those that it starts.

    By default GNU's OpenMP, which torch uses on Linux, lets them spin for long, but hardly at all once threads exceed
    cores, as where steps of neighboring cases overlap: threads then fall asleep after every layer, and the network
    takes twice the time. This number holds in both cases, long enough to meet the other threads and short enough to
    leave the core to another program. What the user has set (`GOMP_SPINCOUNT`, `OMP_WAIT_POLICY`) stays; other
    systems' OpenMP does not read it.

    Reference:
        GNU libgomp manual, "GOMP_SPINCOUNT".
    """
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"  # else the number counts no longer once threads exceed cores
