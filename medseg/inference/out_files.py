"""Files in OUT that only one process may make, or that only their owner may read; and what killed processes left."""

import os
import re
import time
from pathlib import Path
from uuid import uuid4

from medseg.writing import aside

FOLDER = ".medseg"  # in OUT: records, claims, the key of pseudonyms
MASK_ENDINGS = ("_seg.nii.gz", "_seg.png")
LEFT_OVER = re.compile(
    r"\.[0-9a-f]{8}-.+(\.nii|\.nii\.gz|\.png|\.csv|\.json|\.html|\.dcm|\.nrrd|\.stl|\.txt|\.ctbl|\.parquet|key)"
)  # as `aside` names them
OWNER_ONLY = 0o600


def write_private(path: Path, text: str) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    with aside(path) as temporary:
        _write_new(temporary, text)


def create_once(path: Path, text: str) -> bool:
    """Make a file with all its content at once, for its owner alone; False if there is one already.

    Of several processes, on one machine or several, one gets True.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:8]}-{path.name}")
    try:
        _write_new(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links on this disk (exFAT, some shares): others may see it empty for a moment
            return _create_plainly(path, text)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, *, older_than_s: float) -> int:
    """Remove half-written files, below `folder`, that no process has touched for `older_than_s`; how many."""
    removed = 0
    before = time.time() - older_than_s
    for parent, _, names in os.walk(folder):
        for name in names:
            if not LEFT_OVER.fullmatch(name):
                continue
            path = Path(parent, name)
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
            except OSError:  # another process was faster, or holds it
                continue
    return removed


def left_over_of(target: Path) -> list[Path]:
    """What killed processes began of one file: named as `aside` names it, perhaps twice."""
    name = re.compile(rf"(\.[0-9a-f]{{8}}-)+{re.escape(target.name)}")
    return [path for path in target.parent.iterdir() if name.fullmatch(path.name)] if target.parent.is_dir() else []


def _create_plainly(path: Path, text: str) -> bool:
    try:
        _write_new(path, text)
    except FileExistsError:
        return False
    return True


def _write_new(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(text)
