"""What a run recorded, line by line in its own folder, before MLflow is asked for anything."""

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER, JOURNAL = "tracking", "journal.jsonl"

Record = Mapping[str, Any]


class Journal:
    """The records of one run folder, in order; `RUN/tracking/journal.jsonl`, one JSON object a line.

    A record has one of the keys `start`, `params`, `tags`, `metrics`, `artifact`, `data`, `register`, `status`. The
    first one, `start`, says what MLflow needs to make the run. Lines survive the process, not a power cut.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FOLDER / JOURNAL
        self._lock = threading.Lock()  # figures of the system come from a thread
        self._unwritten: list[bytes] = []

    def append(self, record: Record) -> None:
        """Add a record; if the disk takes none, it is kept in memory and written with the next one.

        Raises:
            OSError: if the disk took none.
        """
        with self._lock:
            self._unwritten.append(json.dumps(record).encode() + b"\n")
            self._write()

    def write(self) -> None:
        """Write what the disk did not take before.

        Raises:
            OSError: if it does not take it now either.
        """
        with self._lock:
            if self._unwritten:
                self._write()

    def records(self, start: int = 0) -> Iterator[tuple[int, Record]]:
        """Each record from byte `start` on, with the byte its line ends at; a line cut off by a kill ends it."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if not line.endswith(b"\n"):
                    return
                yield start, json.loads(line)

    def start(self) -> dict[str, Any]:
        """The `start` record: `key, experiment, name, time, tags, parent`; empty if there is none."""
        first = next(self.records(), None)
        return dict(first[1].get("start", {})) if first else {}

    def status(self) -> str:
        """The latest status, `RUNNING` before any other."""
        return next((str(r["status"]) for r in reversed([r for _, r in self.records()]) if "status" in r), "RUNNING")

    def keep(self, content: str | Path, name: str) -> str:
        """Keep a text or a copy of a file for the run's artifact `name`; its path within the run folder.

        A file that lies in the run folder is not copied.
        """
        if isinstance(content, Path) and content.resolve().is_relative_to(self.folder):
            return content.resolve().relative_to(self.folder).as_posix()
        kept = self.folder / FOLDER / "artifacts" / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, kept)
        else:
            kept.write_text(content, encoding="utf-8", newline="")
        return kept.relative_to(self.folder).as_posix()

    def _write(self) -> None:
        """A line half written, by a kill or on a full disk, is cut off first: no line is ever two halves."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("ab+") as file:
            whole = _end_of_last_line(file.fileno(), file.seek(0, os.SEEK_END))
            file.truncate(whole)
            try:
                file.write(b"".join(self._unwritten))
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), whole)
                raise
        self._unwritten.clear()


def _end_of_last_line(descriptor: int, size: int) -> int:
    """Byte after the last line end of a file of `size` bytes."""
    end = size
    with os.fdopen(os.dup(descriptor), "rb") as file:
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
