"""Hooks that make cases fail in a worker; `MEDSEG_TEST_STATE` names a folder where they count."""

import ctypes
import errno
import os
import signal
import time
from pathlib import Path


def first_time(what: str) -> bool:
    """Whether `what` happens for the first time, over all processes."""
    try:
        Path(os.environ["MEDSEG_TEST_STATE"], what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def killed_at_b(step: str, case_id: str) -> None:
    """The process dies whenever case b reaches the network."""
    if (step, case_id) == ("network", "b"):
        os.kill(os.getpid(), signal.SIGKILL)


def segfault_once_at_b(step: str, case_id: str) -> None:
    """A real segmentation fault, the first time only."""
    if (step, case_id) == ("read", "b") and first_time("segfault"):
        ctypes.string_at(0)


def hangs_once_at_b(step: str, case_id: str) -> None:
    """Case b never answers, the first time."""
    if (step, case_id) == ("network", "b") and first_time("hang"):
        time.sleep(3600)


def sticky_device_fault(step: str, case_id: str) -> None:
    """From case c on every use of the GPU fails, in this process, and in one more."""
    if step != "network":
        return
    here = f"fault-{os.getpid()}"
    state = Path(os.environ["MEDSEG_TEST_STATE"])
    faulty = (state / here).exists() or (case_id == "c" and first_time("fault"))
    if faulty:
        (state / here).touch()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def device_is_lost(step: str, case_id: str) -> None:
    """The GPU fails for good."""
    if step == "network":
        raise RuntimeError("CUDA error: unspecified launch failure")


def disk_is_full(step: str, case_id: str) -> None:
    """No mask can be written."""
    if step == "write":
        raise OSError(errno.ENOSPC, "No space left on device")


def slow_network(step: str, case_id: str) -> None:
    """Every case takes a while."""
    if step == "network":
        time.sleep(0.5)


def slow_from_the_third(step: str, case_id: str) -> None:
    """The third case and all later ones never end."""
    if step == "network" and case_id >= "c":
        time.sleep(3600)
