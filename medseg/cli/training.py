"""`medseg train`."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from medseg import launch
from medseg.cli.common import app, say
from medseg.errors import ConfigError


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
    launch.check_nested(files, settings)
    if not Path("workflows", "__init__.py").is_file():
        raise ConfigError("no workflows/ in this folder: run medseg train in the folder of the medseg checkout")
    if importlib.util.find_spec("monai") is None or importlib.util.find_spec("mlflow") is None:
        raise ConfigError("training needs MONAI and MLflow: pip install 'medseg[train]'")
    arguments = launch.training_arguments(files, settings, resume=resume, run_id=run_id)
    say("python " + " ".join(launch.quoted(argument) for argument in arguments))
    raise typer.Exit(launch.train(arguments))
