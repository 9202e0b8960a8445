"""How torch's threads wait for each other. Standard library only: to be set before torch is imported."""

import os

SPIN_COUNT = "10000"  # about 0.1 ms; libgomp's own default is a hundred times that where threads do not exceed cores


def wait_briefly() -> None:
    """Let OpenMP threads that wait for others give up their core soon, in this process and those that it starts.

    GNU's OpenMP, which torch uses on Linux, lets them spin. Where another program holds a core, every convolution
    then spins until the system takes that program off: with one core of two held by a training, one case took 60 s
    by default and 9 s with threads that sleep; on free cores this number costs nothing, sleeping at once does. What
    the user has set (`GOMP_SPINCOUNT`, `OMP_WAIT_POLICY`) stays; other systems' OpenMP does not read it.

    Reference:
        GNU libgomp manual, "GOMP_SPINCOUNT".
    """
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
        # where stages overlap threads exceed cores, and libgomp hardly spins else: the network took twice as long
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
