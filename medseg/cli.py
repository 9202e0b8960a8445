"""The `medseg` command: parses, calls, prints.

What is heavy (torch, NumPy, rich) is imported by the command that needs it, so that `--help` answers at once.
"""

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg import __version__, launch
from medseg.errors import ConfigError, DataError
from medseg.notices import NOT_A_DEVICE, SYNTHETIC

FAILED, UNEXPECTED, USAGE = 3, 1, 2  # exit codes: some cases failed, a defect, a wrong input or setting

app = typer.Typer(
    help="Medical-image segmentation as MONAI bundles. Not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; an error is one line on stderr (`MEDSEG_DEBUG=1` shows where an unexpected one arose)."""
    try:
        app()
    except (DataError, ConfigError) as error:
        _say(f"medseg: {_one_line(error)}")
        sys.exit(USAGE)
    except Exception as error:
        if os.environ.get("MEDSEG_DEBUG") == "1":
            raise
        _say(f"medseg: unexpected {type(error).__name__}: {_one_line(error)} (MEDSEG_DEBUG=1 shows where)")
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


@app.command()
def train(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE OVERLAY|KEY=VALUE",
            help="Recipe, such as configs/unet_liver.json, overlays, such as configs/quick.json, and settings, such as "
            "max_epochs=50 dataset_dir=scans.",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue this run, with its own recipe if none is given.")
    ] = None,
    dataset_dir: Annotated[Path | None, typer.Option("--dataset_dir", help="The same as dataset_dir=FOLDER.")] = None,
    folds: Annotated[
        str | None, typer.Option(metavar="all|0,2", help="Cross-validate: train these folds, and an ensemble of them.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Folds that train at a time.")] = None,
) -> None:
    """Train a model.

    Prints the `python -m monai.bundle run` it stands for, and runs it. Exit codes: 1 it failed (or one of its folds),
    130 and 143 it was stopped by Ctrl-C or SIGTERM; `--resume` then continues where it stood.
    """
    files = [Path(argument) for argument in recipe or () if "=" not in argument]
    settings = [launch.parse_setting(argument) for argument in recipe or () if "=" in argument]
    if dataset_dir is not None:
        settings.append(("dataset_dir", str(dataset_dir)))
    run_id = launch.run_id_of(resume, folds=folds)
    if folds is not None:
        settings.append(("chosen_folds", launch.parse_folds(folds)))
    if jobs is not None:
        if run_id == "training":
            raise ConfigError("--jobs: is for folds; add --folds all, or leave it out")
        settings.append(("jobs", jobs))
    for file in files:
        if not file.is_file():
            raise ConfigError(f"no recipe or overlay at {file}; a setting is written KEY=VALUE")
    if not Path("workflows", "__init__.py").is_file():
        raise ConfigError("no workflows/ in this folder: run medseg train in the folder of the medseg checkout")
    if importlib.util.find_spec("monai") is None or importlib.util.find_spec("mlflow") is None:
        raise ConfigError("training needs MONAI and MLflow: pip install 'medseg[train]'")
    arguments = launch.training_arguments(files, settings, resume=resume, run_id=run_id)
    _say("python " + " ".join(launch.quoted(argument) for argument in arguments))
    raise typer.Exit(launch.train(arguments))


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
    with _progress(len(samples)) as (advance, note):

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

    with _progress(cases) as (advance, _):
        made = make_phantom(
            out, cases=cases, shape=size, seed=seed, phases=phases, progress=lambda _done, _total: advance()
        )
    typer.echo(f"{cases} synthetic cases in {made}; a model of them is {SYNTHETIC}")


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
    raise typer.Exit(serve_ui(runs, port=port, open_browser=browser, on_ready=_say))


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


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar on stderr, on a terminal only: how to advance it, and how to print a line above it."""
    if not sys.stderr.isatty():
        yield _nothing, _say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield partial(bar.advance, task), partial(bar.console.print, markup=False, highlight=False)


def _nothing() -> None:
    pass


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
