"""Where a model's files are: a bundle's folder, a run, a zip, or the run of an MLflow id."""

import json
import logging
import re
import zipfile
from pathlib import Path

from medseg.errors import ConfigError

logger = logging.getLogger(__name__)

RECIPE = "configs/recipe.json"  # what makes a folder or zip a bundle
RUN_ID = re.compile(r"[0-9a-f]{8,32}")


def find_model(model: str | Path, runs_dir: Path) -> Path:
    """The folder or zip that `model` names; see `medseg.bundle.open_bundle`.

    Raises:
        ConfigError: if there is none, with all that was looked for.
    """
    path = Path(model)
    for root in (path, path / "bundle"):
        if (root / RECIPE).is_file():
            return root
    if path.is_file() and zipfile.is_zipfile(path) and _zip_prefix(path) is not None:
        return path
    if RUN_ID.fullmatch(str(model)):
        return _find_run(str(model), runs_dir)
    raise ConfigError(
        f"no model '{model}': looked for a bundle ({model}/{RECIPE}), a run ({model}/bundle), a zip of a bundle, and "
        f"an MLflow run id in {runs_dir}/*/run.json; train one with `medseg train`, or give its folder"
    )


def _find_run(run_id: str, runs_dir: Path) -> Path:
    runs = []
    for file in sorted(runs_dir.glob("*/run.json")):
        try:
            if str(json.loads(file.read_text(encoding="utf-8"))["run_id"]).startswith(run_id):
                runs.append(file.parent)
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s cannot be read and is skipped", file)
    if len(runs) != 1:
        found = f"fits {len(runs)} runs ({', '.join(run.name for run in runs)})" if runs else "fits no run"
        raise ConfigError(f"run id '{run_id}' {found} in {runs_dir}/*/run.json; give more of it, or the run's folder")
    if not (runs[0] / "bundle" / RECIPE).is_file():
        raise ConfigError(f"run '{runs[0].name}' has written no bundle yet; let it train to its first validation")
    return runs[0] / "bundle"


def _zip_prefix(path: Path) -> str | None:
    """Folder inside the zip that is the bundle, with its slash; None if there is none."""
    with zipfile.ZipFile(path) as archive:
        return next(
            (name.removesuffix(RECIPE) for name in archive.namelist() if f"/{name}".endswith(f"/{RECIPE}")), None
        )


def read_member(root: Path, name: str) -> bytes:
    """Content of the file `name` of a bundle; nothing is ever unpacked onto the disk."""
    if root.is_dir():
        return (root / name).read_bytes()
    with zipfile.ZipFile(root) as archive:
        return archive.read(f"{_zip_prefix(root)}{name}")


def has_member(root: Path, name: str) -> bool:
    """Whether a bundle has the file `name`."""
    if root.is_dir():
        return (root / name).is_file()
    with zipfile.ZipFile(root) as archive:
        return f"{_zip_prefix(root)}{name}" in archive.namelist()
