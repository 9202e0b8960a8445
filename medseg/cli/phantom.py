"""`medseg phantom`."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.common import app, progress
from medseg.notices import SYNTHETIC


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    cases: Annotated[int, typer.Option(min=2, help="How many, a quarter of them to judge with.")] = 24,
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    phases: Annotated[int, typer.Option(min=1, max=2, help="Contrast phases, one channel each.")] = 1,
    size: Annotated[tuple[int, int, int], typer.Option(metavar="X Y Z", help="Voxels.")] = (112, 96, 56),
) -> None:
    """Make a synthetic data set.

    An abdomen CT with liver and tumors, to try medseg on.
    """
    from medseg.data import make_phantom

    with progress(cases) as (advance, _):
        made = make_phantom(
            out, cases=cases, shape=size, seed=seed, phases=phases, progress=lambda _done, _total: advance()
        )
    typer.echo(f"{cases} synthetic cases in {made}; a model of them is {SYNTHETIC}")
