"""`medseg bundle`."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli.common import app

bundle_app = typer.Typer(help="Trained models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bundle_app, name="bundle")


@bundle_app.command("reduce")
def reduce_bundle(
    model: Annotated[str, typer.Argument(metavar="ENSEMBLE", help="Bundle or run of a cross-validation.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new bundle.")],
    fold: Annotated[int | None, typer.Option(help="The fold to keep; the best one if left out.")] = None,
) -> None:
    """Reduce an ensemble to one fold.

    Says what that costs in Dice and gains in time, as measured when the ensemble was made.
    """
    from medseg.bundle import open_bundle
    from medseg.inference.ensemble import chosen_fold, reduce_ensemble, reduction

    bundle = open_bundle(model)
    made = reduce_ensemble(bundle, out, fold=fold)
    typer.echo(f"{made}: {reduction(bundle, chosen_fold(bundle, fold))}")
    typer.echo(bundle.notice)
