"""How far the run over a folder is, told by what it leaves in OUT; another process can ask at any time."""

import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.inference.claims import Claims, Work
from medseg.inference.fingerprints import is_same_mask
from medseg.inference.out_files import FOLDER
from medseg.inference.records import Record, Records
from medseg.inference.run_file import read_run


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        model: name and version.
        counts: all cases of OUT by status: done, edited, failed, skipped, pending.
        current: ids of the cases in work.
        running: processes that work on OUT now.
        seconds_left: estimate for the pending cases; None if nothing was finished yet, or nothing runs.
        stopped: why the last run ended early; empty if it did not, or a run goes on.
    """

    model: str
    counts: dict[str, int]
    current: list[str]
    running: list[Work]
    seconds_left: float | None
    stopped: str = ""


def status_of(out: Path) -> Status:
    """How far the run is whose OUT this is; nothing is written.

    Raises:
        ConfigError: if no run has written there.
    """
    folder = out / FOLDER
    if not folder.is_dir():
        raise ConfigError(f"{out}: no run of `medseg predict` has written there; give its OUT")
    records, claims, run = Records(folder / "cases").all(), Claims(folder), read_run(out)
    running = claims.living()
    counts = Counter(_status(out, record) for record in records)
    known = run.get("cases", {})
    counts["skipped"], counts["failed"] = known.get("skipped", 0), counts["failed"] + known.get("refused", 0)
    counts["pending"] = max(counts["pending"], _pending(records, run))
    settings = run.get("settings", {})
    return Status(
        model=f"{settings.get('model', '')} {settings.get('version', '')}".strip(),
        counts={status: counts[status] for status in ("done", "edited", "failed", "skipped", "pending")},
        current=claims.current(),
        running=running,
        seconds_left=_seconds_left(records, running, counts["pending"]),
        stopped="" if running else _why_stopped(run),
    )


def _status(out: Path, record: Record) -> str:
    """A record's status, with a look at its mask."""
    status, mask = str(record["row"].get("status", "failed")), record["mask"]
    if status != "done" or not mask:
        return status
    try:
        return "done" if is_same_mask(out / mask["name"], mask) else "edited"
    except OSError:  # its mask is gone: the next run does it again
        return "pending"


def _pending(records: list[Record], run: dict[str, Any]) -> int:
    """Cases of the last run that it was to do and has not finished."""
    if "started" not in run:
        return 0
    started = datetime.fromisoformat(run["started"]).timestamp()
    return int(run["cases"]["to_do"]) - sum(record.get("written", 0) >= started for record in records)


def _seconds_left(records: list[Record], running: list[Work], pending: int) -> float | None:
    """From the pace since the first of the running processes began."""
    if not running:
        return None
    since = min(work.since for work in running)
    finished = sum(record.get("written", 0) >= since for record in records)
    return (time.time() - since) / finished * pending if finished else None


def _why_stopped(run: dict[str, Any]) -> str:
    if not run:
        return ""
    if run.get("ended") is None:
        return "its process is gone without a word"
    return str((run.get("result") or {}).get("stopped", ""))
