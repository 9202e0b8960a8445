"""Which models are here: what `medseg predict` lists when it is not told which one."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medseg.bundle import open_bundle
from medseg.errors import ConfigError
from medseg.model_files import RECIPE

VARIABLE = "MEDSEG_MODELS"


@dataclass(frozen=True)
class Model:
    """A bundle that was found.

    Attributes:
        path: what to give as `--model`.
        about: name, version and regions; empty if it cannot be used.
        problem: why it cannot be used.
    """

    path: Path
    about: str = ""
    problem: str = ""


def found_models(folders: str | None = None) -> list[Model]:
    """Bundles, runs and zips of bundles in folders, and one level below them, in the order of their paths.

    Args:
        folders: as `PATH` has them, with ":" (on Windows ";") between; those of `MEDSEG_MODELS` if left out.
    """
    given = os.environ.get(VARIABLE, "") if folders is None else folders
    found: dict[Path, Model] = {}
    for folder in (Path(entry) for entry in given.split(os.pathsep) if entry):
        for path in [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]:
            if _may_be_model(path) and path.parent not in found:  # a run has its bundle below it
                found.setdefault(path, _model(path))
    return list(found.values())


def chosen_model(model: str) -> str:
    """The model that is asked for.

    Raises:
        ConfigError: if none is: with those that `MEDSEG_MODELS` leads to, or how to get one.
    """
    if model:
        return model
    found = found_models()
    if found:
        listed = "; ".join(f"--model {one.path} ({one.about or 'cannot be used: ' + one.problem})" for one in found)
        raise ConfigError(f"which model? {VARIABLE} leads to {listed}")
    where = f"{VARIABLE}={os.environ[VARIABLE]} leads to none" if os.environ.get(VARIABLE) else f"{VARIABLE} is not set"
    raise ConfigError(
        f"which model? {where}; give --model with a bundle's folder, its zip, a run or an MLflow run id; train one "
        f"with `medseg train`, or let {VARIABLE} name a folder of bundles"
    )


def _may_be_model(path: Path) -> bool:
    if path.is_dir():
        return (path / RECIPE).is_file() or (path / "bundle" / RECIPE).is_file()
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:  # zips of other things, such as scans, are no broken models
            return any(PurePosixPath(name).match(RECIPE) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _model(path: Path) -> Model:
    try:
        bundle = open_bundle(path)
    except ConfigError as error:
        return Model(path, problem=str(error))
    return Model(path, f"{bundle.name} {bundle.version}: {', '.join(bundle.regions)} from {', '.join(bundle.channels)}")
