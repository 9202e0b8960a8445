"""Installed viewers, started with a case's scan, mask and names of its labels; nothing is downloaded or installed."""

import csv
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from medseg.errors import ConfigError
from medseg.formats.choice import ITKSNAP_LABELS, SLICER_COLORS
from medseg.inference.identity import KEY_TABLE
from medseg.inference.out_files import MASK_ENDINGS

Viewer = Literal["slicer", "itksnap"]
VIEWERS: tuple[Viewer, ...] = get_args(Viewer)


@dataclass(frozen=True)
class Program:
    """A viewer: its name, where to get it, the commands it may have, and the variable that says where it is."""

    name: str
    site: str
    commands: tuple[str, ...]
    variable: str


PROGRAMS: dict[Viewer, Program] = {
    "slicer": Program("3D Slicer", "slicer.org", ("Slicer", "slicer"), "MEDSEG_SLICER"),
    "itksnap": Program("ITK-SNAP", "itksnap.org", ("itksnap", "ITK-SNAP"), "MEDSEG_ITKSNAP"),
}
LOAD_SCAN = "import slicer; slicer.util.loadVolume({scan!r}); "
LOAD_NAMED = (
    "names = slicer.util.loadColorTable({colors!r}); "
    "slicer.util.loadSegmentation({mask!r}, {{'colorNodeID': names.GetID()}})"
)
LOAD = "slicer.util.loadSegmentation({mask!r})"


def find_program(viewer: Viewer) -> str:
    """Path of an installed viewer: what its variable names, else what the shell would find.

    Raises:
        ConfigError: if it is not there; says what to install or set.
    """
    program = PROGRAMS[viewer]
    named = os.environ.get(program.variable)
    candidates = [named] if named else list(program.commands)
    found = next((path for path in map(shutil.which, candidates) if path), None)
    if found is None:
        why = f"{program.variable} names no program" if named else "it is not on the PATH"
        raise ConfigError(
            f"{program.name} was not found ({why}): install it from {program.site}, or set {program.variable} to its "
            "program"
        )
    return found


def mask_of(out: Path, case_id: str) -> Path:
    """The mask of a case.

    Raises:
        ConfigError: if OUT has none; names a few that it has.
    """
    for ending in MASK_ENDINGS:
        if (path := out / f"{case_id}{ending}").is_file():
            return path
    known = sorted(
        path.relative_to(out).as_posix().removesuffix(ending)
        for ending in MASK_ENDINGS
        for path in out.rglob(f"*{ending}")
    )
    shown = f"it has {', '.join(known[:5])}{' ...' if len(known) > 5 else ''}" if known else "it has none"
    raise ConfigError(f"no mask of case {case_id!r} in this OUT; {shown}")


def scan_of(out: Path, case_id: str) -> Path:
    """The scan of a case with a pseudonym, by `key.csv`; of a DICOM series a file of it.

    Raises:
        ConfigError: if OUT does not know it: cases under their own names are not written down with their folders.
    """
    table = out / KEY_TABLE
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["case_id"] == case_id:
                    return _file_of(Path(row["path"]), row["series_uid"])
    raise ConfigError(f"where the scan of case {case_id!r} lies is not written in OUT; add --scan FILE")


def view_command(viewer: Viewer, program: str, scan: Path, *, mask: Path, out: Path) -> list[str]:
    """The command that shows a mask over its scan, with the names and colors that predict has written to OUT."""
    if viewer == "itksnap":
        named = ["-l", str(out / ITKSNAP_LABELS)] if (out / ITKSNAP_LABELS).is_file() else []
        return [program, "-g", str(scan), "-s", str(mask), *named]
    code = LOAD_SCAN.format(scan=str(scan))
    colors = out / SLICER_COLORS
    code += LOAD_NAMED.format(mask=str(mask), colors=str(colors)) if colors.is_file() else LOAD.format(mask=str(mask))
    return [program, "--python-code", code]


def start(command: list[str]) -> None:
    """Start a viewer that stays open when this process ends."""
    flags, detached = 0, True
    if sys.platform == "win32":
        flags, detached = subprocess.CREATE_NEW_PROCESS_GROUP, False
    nothing = subprocess.DEVNULL
    subprocess.Popen(
        command,
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        start_new_session=detached,
        creationflags=flags,
    )


def _file_of(path: Path, series_uid: str) -> Path:
    if not series_uid:
        return path
    from medseg.reading.dicom import find_series

    found = [series for series in find_series(path) if series.source.series_uid == series_uid] if path.exists() else []
    if not found or path.is_file():
        raise ConfigError("the series is gone, or in a zip, which viewers do not open; unpack it and add --scan FILE")
    return path / found[0].source.files[0]
