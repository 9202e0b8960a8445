"""What the commands share: the application itself, exit codes, progress, and how a line reaches the terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import typer

FAILED, UNEXPECTED, USAGE = 3, 1, 2  # exit codes: some cases failed, a defect, a wrong input or setting

app = typer.Typer(
    help="Medical-image segmentation as MONAI bundles. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar on stderr, on a terminal only: how to advance it, and how to print a line above it."""
    if not sys.stderr.isatty():
        yield _nothing, say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield partial(bar.advance, task), partial(bar.console.print, markup=False, highlight=False)


def _nothing() -> None:
    pass


def say(text: str) -> None:
    """Print a line on stderr."""
    typer.echo(text, err=True)


def one_line(error: Exception) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
