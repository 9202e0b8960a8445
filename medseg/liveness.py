"""Whether another process still lives: what a process says about itself, and how others check it."""

import hashlib
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

SAME_START_S = 2.0  # clocks are set, and start times with them


def this_process() -> dict[str, Any]:
    """Host (a hash), number and start time of this process, as `runs` reads them."""
    return {"host": this_host(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def runs(process: dict[str, Any]) -> bool:
    """Whether a process of this machine, as `this_process` describes it, still runs.

    A number alone says nothing: after a restart of the machine another process has it.
    """
    try:
        found = psutil.Process(process["pid"])
        same = abs(found.create_time() - process["started"]) < SAME_START_S
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


@cache
def this_host() -> str:
    """What tells machines, and containers on one machine, apart; a hash, for a machine's name is nobody's business."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text(encoding="utf-8"))
    with suppress(OSError):  # process numbers mean nothing in another container
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(["medseg", *parts]).encode()).hexdigest()[:16]
