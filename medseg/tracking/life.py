"""Whether the process that writes a run still lives: the sign it gives, and how others read it."""

import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.liveness import runs, this_host, this_process
from medseg.tracking.journal import FOLDER
from medseg.writing import aside

logger = logging.getLogger(__name__)

BEAT_S = 60.0  # the sign is renewed this often
MISSED_S = 600.0  # a process of another machine without a sign for this long is dead
WATCH_S = 150.0  # so long a resume watches for a sign from another machine, whose clock may be wrong


def sign(folder: Path) -> Path:
    """The sign of life of a run folder; it exists until all that the run recorded is in MLflow."""
    return folder / FOLDER / "open.json"


def give_sign(folder: Path) -> None:
    """Write into a run folder that this process lives now."""
    me = this_process()
    content = {"host": me["host"], "pid": me["pid"], "process_started": me["started"], "beat": time.time()}
    with aside(sign(folder)) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def take_sign(folder: Path) -> None:
    """Remove the sign: nothing is left to be done for this run."""
    with suppress(OSError):
        sign(folder).unlink(missing_ok=True)


def is_dead(folder: Path) -> bool:
    """Whether the process that wrote the run is gone.

    On this machine: no process has its number and start time. On another: no sign for `MISSED_S`. Without a sign
    nobody writes.
    """
    found = _read(folder)
    if not found:
        return True
    if found["host"] == this_host():
        return not _runs(found)
    return time.time() - found["beat"] > MISSED_S


def claim(folder: Path) -> None:
    """Make sure that no other process writes this run, and sign it.

    A sign from another machine may be minutes old when that machine dies, so it is watched for a while.

    Raises:
        ConfigError: if another process writes it.
    """
    found = _read(folder)
    if found and found["host"] == this_host():
        if found["pid"] != os.getpid() and _runs(found):
            raise ConfigError(f"run {folder.name} is being written by process {found['pid']}: wait for it, or end it")
    elif found and not is_dead(folder):
        logger.info("run %s was written on another machine until now: watching it for %.0f s", folder.name, WATCH_S)
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(min(1.0, WATCH_S / 10))
            if _read(folder) not in ({}, found):
                raise ConfigError(
                    f"run {folder.name} is being written on another machine: wait for it, or end it there"
                )
    give_sign(folder)


def _read(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(sign(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _runs(found: dict[str, Any]) -> bool:
    return runs({"pid": found["pid"], "started": found["process_started"]})
