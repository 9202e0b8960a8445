"""`medseg open`."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.common import app, say
from medseg.errors import ConfigError


@app.command("open")
def open_case(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `medseg predict` has written.")],
    case: Annotated[str, typer.Argument(metavar="CASE", help="Case id, as in report.csv.")],
    viewer: Annotated[str, typer.Option("--with", help="slicer or itksnap.")] = "slicer",
    scan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The scan, where OUT does not know it (only key.csv does).")
    ] = None,
) -> None:
    """Open a case in 3D Slicer or ITK-SNAP.

    Shows scan, mask, names and colors in a viewer that is installed on this machine.
    """
    from medseg.viewers import VIEWERS, find_program, mask_of, scan_of, start, view_command

    chosen = next((known for known in VIEWERS if known == viewer), None)
    if chosen is None:
        raise ConfigError(f"--with: {viewer!r} is not known; give {' or '.join(VIEWERS)}")
    if scan is not None and not scan.exists():
        raise ConfigError("--scan: no such file; check the path")
    mask = mask_of(out, case)
    program = find_program(chosen)
    scan = scan or scan_of(out, case)
    start(view_command(chosen, program, scan.absolute(), mask=mask.absolute(), out=out.absolute()))
    say(f"{case}: opened with {Path(program).name}")
