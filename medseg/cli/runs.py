"""`medseg ui` and `medseg runs`."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.common import app, say


@app.command()
def ui(
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Show runs in MLflow.

    Curves, settings and pictures, on this machine only; Ctrl-C ends it.
    """
    from medseg.tracking import serve_ui

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that ending this ends the server too
    raise typer.Exit(serve_ui(runs, port=port, open_browser=browser, on_ready=say))


runs_app = typer.Typer(help="Runs that trainings recorded.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")


@runs_app.command("import")
def import_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, or one above run folders.")],
    runs: Annotated[Path, typer.Option(help="Folder of runs, whose MLflow store gets them.")] = Path("runs"),
) -> None:
    """Bring run folders into MLflow.

    From another machine or store, or after a tracking server was away; a run that is there already is completed, not
    doubled.
    """
    from medseg import tracking

    said = {
        "imported": "imported",
        "completed": "was there, what was missing is sent",
        "complete": "was there",
        "incomplete": "its files were not taken, import it again",
        "running": "still being written, left alone",
        "empty": "recorded nothing that could be imported",
    }
    for run in tracking.import_runs(folder, runs_dir=runs):
        typer.echo(f"{run.name}: {said[run.what]}{f' (run id {run.run_id})' if run.run_id else ''}")
