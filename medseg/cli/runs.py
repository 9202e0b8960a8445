"""`medseg ui` and `medseg runs`."""

import csv
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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


runs_app = typer.Typer(rich_markup_mode=None)
app.add_typer(runs_app, name="runs")

MOST_FIGURES, LONGEST = 4, 60  # columns of a terminal, letters of a cell
PIPE_WIDTH, WIDE = 160, 110  # a file has no edge to wrap at; what a narrow terminal has no room for is left out
SHORT_ID = 8  # letters of a run id, which do for every command


@runs_app.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    runs: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    where: Annotated[
        list[str] | None, typer.Option(help="Only such runs, as 'liver_dice>0.9' or status=FINISHED; may be repeated.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="By a column, figure or setting; newest first without.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Largest first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known of each, for programs.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The same as a table.")] = False,
) -> None:
    """List runs, one a line.

    A run whose process is gone without a word is STALE. `medseg runs import` brings runs from elsewhere.
    """
    if context.invoked_subcommand:
        return
    from medseg import review

    rows = review.list_rows(runs, where=where or (), sort=sort, descending=descending)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif as_csv:
        writer = csv.DictWriter(
            sys.stdout, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_rows(rows)


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from medseg import review

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    wide = console.width >= WIDE
    own = (
        ["run_id", "status", "started", "minutes"] if wide else ["run_id", "status"]
    )  # a run's name begins with its date
    figures = review.figures_of(rows)[: MOST_FIGURES if wide else 2]
    fixed = [Column(name, no_wrap=True) for name in ("run", *own, *figures)]
    table = Table(*fixed, *(["overrides"] if wide else []), box=None, padding=(0, 2, 0, 0))
    for row in rows:
        values = [review.value_of(row, figure) for figure in figures]
        shown = ["" if value is None else f"{float(value):.3f}" for value in values]
        texts = [str(row[name] or "")[: SHORT_ID if name == "run_id" else None] for name in own]
        table.add_row(row["name"], *texts, *shown, *([_cut(row["overrides"] or "")] if wide else []))
    console.print(table)
    stale = [row["name"] for row in rows if row["status"] == "STALE"]
    if stale:
        say(f"stale, nobody writes them any more (the next launch closes them as KILLED): {', '.join(stale)}")
    if not rows:
        say("no runs")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


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
