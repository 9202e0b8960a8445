"""`medseg status`."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.common import app


@app.command()
def status(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `medseg predict` writes to.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say how far `medseg predict` is with a folder.

    Tells how many cases are done, edited, failed and pending, which are being done now, the time left, and whether a
    process still works on it.
    """
    from medseg.inference.status import status_of

    found = status_of(out)
    processes = [work.process["pid"] for work in found.running]
    if as_json:
        content = {
            "model": found.model,
            **found.counts,
            "current": found.current,
            "processes": processes,
            "seconds_left": None if found.seconds_left is None else round(found.seconds_left),
            "stopped": found.stopped,
        }
        typer.echo(json.dumps(content))
        return
    typer.echo(f"model:   {found.model or 'unknown'}")
    typer.echo(f"cases:   {', '.join(f'{count} {name}' for name, count in found.counts.items() if count) or 'none'}")
    if processes:
        left = f"about {timedelta(seconds=round(found.seconds_left))}" if found.seconds_left else "not known yet"
        typer.echo(f"in work: {', '.join(found.current) or 'none'}")
        typer.echo(f"running: process {', '.join(map(str, processes))}; time left: {left}")
    elif found.counts["pending"]:
        why = f" ({found.stopped})" if found.stopped else ""
        typer.echo(f"running: no{why}; the same command of `medseg predict` does the pending cases")
    else:
        typer.echo(f"running: no{f' ({found.stopped})' if found.stopped else ''}")
