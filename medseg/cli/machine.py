"""`medseg doctor`, `medseg cache` and `medseg info`: what is here and what recipes can use."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.common import app


@app.command()
def doctor() -> None:
    """Say what this machine offers."""
    from medseg.doctor import report

    for name, finding in report():
        typer.echo(f"{name + ':':<10} {finding}")


@app.command()
def cache(
    folder: Annotated[Path, typer.Option(help="Folder of the cache.")] = Path("runs/cache"),
    clear: Annotated[bool, typer.Option("--clear", help="Remove what it holds.")] = False,
) -> None:
    """List prepared cases on disk, or clear them."""
    from medseg.data.cache_files import cache_folders, clear_cache

    found = cache_folders(folder)
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        typer.echo(f"{entry.path.name}  {entry.cases:>5} {entry.name} cases  {entry.size / 2**30:8.2f} GB  used {used}")
    if not found:
        typer.echo(f"nothing is cached in {folder}")
    elif clear:
        typer.echo(f"cleared: {clear_cache(folder) / 2**30:.2f} GB are free again")


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="With all parameters, for programs.")] = False,
) -> None:
    """List what recipes can use.

    Networks, losses, metrics, clean-up rules. `--json` gives their parameters too.
    """
    from medseg.info import offered

    if as_json:
        typer.echo(json.dumps(offered(), indent=2, default=str))
        return
    for kind, parts in offered().items():
        typer.echo(f"{kind}:")
        for path, part in parts.items():
            typer.echo(f"  {path:<44} {part['about']}")
