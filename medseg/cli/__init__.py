"""The `medseg` command: parses, calls, prints.

What is heavy (torch, NumPy, rich) is imported by the command that needs it, so that `--help` answers at once.
"""

import atexit
import gc
import os
import sys
from typing import Annotated

import typer

from medseg import __version__

from medseg.cli import training, inspect, predict, status, open, evaluate, compare  # isort: skip (the order of --help)
from medseg.cli import phantom, runs, bundles, precision, machine  # isort: skip
from medseg.cli.common import UNEXPECTED, USAGE, app, one_line, say
from medseg.errors import ConfigError, DataError
from medseg.notices import NOT_A_DEVICE
from medseg.threads import wait_briefly

__all__ = [
    "app",
    "bundles",
    "compare",
    "evaluate",
    "inspect",
    "machine",
    "main",
    "open",
    "phantom",
    "precision",
    "predict",
    "runs",
    "status",
    "training",
]


def main() -> None:
    """Run the command; an error is one line on stderr (`MEDSEG_DEBUG=1` shows where an unexpected one arose)."""
    wait_briefly()
    atexit.register(gc.freeze)  # torch leaves 250 000 objects; looking through them takes half a second
    try:
        app()
    except (DataError, ConfigError) as error:
        say(f"medseg: {one_line(error)}")
        sys.exit(USAGE)
    except Exception as error:
        if os.environ.get("MEDSEG_DEBUG") == "1":
            raise
        say(f"medseg: unexpected {type(error).__name__}: {one_line(error)} (MEDSEG_DEBUG=1 shows where)")
        sys.exit(UNEXPECTED)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medseg {__version__}, {NOT_A_DEVICE}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass
