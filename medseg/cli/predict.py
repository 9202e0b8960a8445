"""`medseg predict`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.common import FAILED, app, progress
from medseg.errors import ConfigError


@app.command()
def predict(
    scans: Annotated[
        Path, typer.Argument(metavar="SCANS", help="Folder of scans (NIfTI, NRRD, MHA) or images, or one.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for masks and report.csv.")],
    model: Annotated[str, typer.Option(help="Bundle folder, its zip, run folder, or MLflow run id.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Segment scans and measure.

    Writes one mask a scan on the scan's own grid, and one row a scan in report.csv. Exit code 3: some scans failed.
    """
    if out.resolve().is_relative_to(scans.resolve()):
        raise ConfigError(f"{out} lies inside {scans}: masks would be taken for scans; choose another OUT")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; OUT must be a folder")
    from medseg.bundle import open_bundle
    from medseg.data import find_scans

    bundle = open_bundle(model)
    samples = find_scans(scans, channels=bundle.channels, images=bundle.unit == "px")
    from medseg.doctor import choose_device
    from medseg.inference import predict_folder

    chosen = choose_device(device)
    with progress(len(samples)) as (advance, note):

        def on_row(row: dict[str, Any]) -> None:
            if row["status"] == "failed":
                note(f"{row['case_id']}: {row['message']}")
            advance()

        out.mkdir(parents=True, exist_ok=True)
        rows = predict_folder(samples, out, bundle, device=chosen, on_row=on_row)
    failed = sum(row["status"] == "failed" for row in rows)
    warned = sum(bool(row.get("warnings")) for row in rows)
    typer.echo(f"{len(rows) - failed} done, {failed} failed, {warned} with warnings: see {out / 'report.csv'}")
    typer.echo(bundle.notice)
    raise typer.Exit(FAILED if failed else 0)
