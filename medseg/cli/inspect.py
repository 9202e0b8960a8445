"""`medseg inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.common import app
from medseg.errors import ConfigError


@app.command()
def inspect(
    scans: Annotated[
        Path, typer.Argument(metavar="SCANS", help="Folder of scans and DICOM series, a zip of them, or one file.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="CASES.CSV", help="Table to write; edit its column `chosen`.")
    ] = Path("cases.csv"),
    all_series: Annotated[
        bool, typer.Option("--all-series", help="Choose every DICOM volume, not the best one of each study.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that is there already.")] = False,
) -> None:
    """List the scans and DICOM series of a folder in a table.

    The table says of each whether `medseg predict` would segment it, and why; no voxel is read. Edit it, then run
    `medseg predict CASES.CSV OUT`. It shows series descriptions, which may hold names: keep it with the scans.
    """
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"{out.name}: a table's name ends in .csv; choose another")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.name}: no such folder to write it in; make it first")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out.name} is there and may have been edited; choose another name, or add --overwrite")
    from medseg.inspecting import table, write_table

    rows = table(scans, all_series=all_series)
    try:
        write_table(rows, out)
    except OSError as error:  # a full or write-protected disk, or a spreadsheet that holds the table
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{out.name} cannot be written ({reason}); close it, or choose another place") from error
    chosen = sum(row.chosen for row in rows)
    typer.echo(f"{len(rows)} scans and series, {chosen} chosen: see {out}")
