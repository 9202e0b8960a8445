"""The records of OUT on disk: one JSON file a case, read again only where another process has changed it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from medseg.writing import aside

Record = dict[str, Any]
Stamp = tuple[int, int, int]


class Records:
    """`OUT/.medseg/cases/`.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[Stamp, Record | None]] = {}

    def read(self, name: str) -> Record | None:
        """A case's record as it is on disk now; None if there is none, or it is damaged."""
        path = self._file(name)
        try:
            stamp = _stamp(path.stat())
        except OSError:
            self._known.pop(name, None)
            return None
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = self._known[name] = (stamp, _read(path))
        return known[1]

    def stamp(self, name: str) -> Stamp | None:
        """Changes whenever the record is written, by any process; None if there is none."""
        try:
            return _stamp(self._file(name).stat())
        except OSError:
            return None

    def write(self, name: str, record: Record) -> None:
        """Write a case's record, whole or not at all.

        Raises:
            OSError: if the disk does not take it.
        """
        with aside(self._file(name)) as temporary:
            temporary.write_text(json.dumps(record, default=_plain), encoding="utf-8")
        self.read(name)

    def all(self) -> list[Record]:
        """Every record, in the order of case ids."""
        found: dict[str, tuple[Stamp, Record | None]] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    name, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (thousands, after every case)
                    if suffix != ".json" or name.startswith("."):
                        continue
                    stamp, known = _stamp(os.stat(entry.path)), self._known.get(name)  # noqa: PTH116 (as above)
                    found[name] = known if known and known[0] == stamp else (stamp, _read(Path(entry.path)))
        except FileNotFoundError:
            return []
        self._known = found
        return sorted((record for _, record in found.values() if record), key=_case_id)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def record_name(case_id: str) -> str:
    """File name of a case's record and claims: case ids are long, have slashes, and differ by case alone."""
    return hashlib.sha256(case_id.encode()).hexdigest()[:32]


def _read(path: Path) -> Record | None:
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        return record if {"case_id", "settings", "inputs", "mask", "row", "lesions"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _stamp(about: os.stat_result) -> Stamp:
    return about.st_mtime_ns, about.st_size, about.st_ino


def _plain(value: Any) -> Any:
    """JSON of what NumPy and pathlib bring along."""
    return value.item() if hasattr(value, "item") else str(value)


def _case_id(record: Record) -> str:
    return str(record["case_id"])
