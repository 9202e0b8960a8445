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
    all_series: Annotated[bool, typer.Option("--all-series", help="Choose every volume, not one a study.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that is there.")] = False,
) -> None:
    """List scans and DICOM series.

    From headers alone: what would be segmented, and why or why not. Edit the table, then predict CASES.CSV OUT. It
    shows series descriptions, which may hold names: keep it with the scans.
    """
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"{out.name}: a table's name ends in .csv; choose another")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.name}: no such folder to write it in; make it first")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out.name} is there and may have been edited; choose another name, or add --overwrite")
    from medseg.inspecting import table, write_table

    rows = table(scans, all_series=all_series)
    write_table(rows, out)
    chosen = sum(row.chosen for row in rows)
    typer.echo(f"{len(rows)} scans and series, {chosen} chosen: see {out}")
