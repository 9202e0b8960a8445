"""Continuing a run: which one, whether recipe and data are still the same, and what has changed."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.data import Cases, fingerprint
from medseg.errors import ConfigError, DataError
from medseg.writing import aside

logger = logging.getLogger(__name__)

RECIPE, DATA = "recipe.json", "data.json"  # in the run's folder
PLACES = (
    "resume",
    "dataset_dir",
    "splits",
    "part_of",
    "output_dir",
    "scans_dir",
    "masks_dir",
    "model",
)  # where things are
HARMLESS = (
    *PLACES,
    "device",
    "num_workers",
    "cache",
    "cache_dir",
    "checkpoint_interval",
    "chosen_folds",
    "jobs",
    "register_as",
    "alias",
    "flags",
)  # the training stays the same


def run_folder(resume: Any) -> Path:
    """The run's folder that the recipe's `resume` names.

    Raises:
        ConfigError: if it is anything else; a training must not start anew because of a slip.
    """
    if not isinstance(resume, str | Path) or not Path(resume, "run.json").is_file():
        raise ConfigError(f"resume: {resume!r} is no run's folder; give one, such as runs/NAME, or leave it out")
    return Path(resume).resolve()


def record(run: Path, recipe: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Write into the run's folder what `check_recipe` and `check_data` compare with."""
    for name, content in ((RECIPE, recipe), (DATA, data)):
        with aside(run / name) as path:
            path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def check_recipe(run: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that a run was started with; what has changed without harm is logged.

    Raises:
        ConfigError: if `recipe` would train something else; names the settings.
    """
    before = _read(run, RECIPE)
    changes = list(_differences(before, json.loads(json.dumps(recipe, default=str))))
    refused = [change for change in changes if change[0].partition("::")[0] not in HARMLESS]
    if refused:
        shown = ", ".join(f"{id} {old!r} (now {new!r})" for id, old, new in refused[:3])
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise ConfigError(
            f"resume: run {run.name} was started with {shown}{more}; leave the change out, or start a new training"
        )
    for id, old, new in changes:
        if id != "resume":
            logger.info("%s", f"changed: {id}" if id in PLACES else f"changed: {id} from {old} to {new}")
    return before


def describe_data(cases: Cases) -> dict[str, Any]:
    """Fingerprint of a data set's content and of its split; no paths and no case ids."""
    return {
        **fingerprint([*cases.training, *cases.validation, *cases.test]),
        "split": hashlib.sha256(json.dumps(split(cases)).encode()).hexdigest(),
    }


def split(cases: Cases) -> dict[str, list[str]]:
    """The case ids of each part of a data set."""
    parts = {"training": cases.training, "validation": cases.validation, "test": cases.test}
    return {name: [sample["case_id"] for sample in part] for name, part in parts.items()}


def check_data(run: Path, data: Mapping[str, Any]) -> None:
    """Refuse to continue with other data than the run's, wherever they lie.

    Raises:
        DataError: if content or split differ.
    """
    before = _read(run, DATA)
    if before["sha256"] != data["sha256"]:
        raise DataError(
            f"dataset_dir: other data than those of run {run.name} ({before['cases']} cases with {before['labels']} "
            f"labels, here {data['cases']} with {data['labels']}); give --dataset_dir with the same files"
        )
    if before["split"] != data["split"]:
        raise DataError(f"dataset_dir: the data of run {run.name}, but split otherwise; give its splits.json back")


def _read(run: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((run / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"run {run.name}: its {name} cannot be read; start a new training") from error
    return content


def _differences(before: Any, now: Any, id: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Ids at which two recipes differ, with both contents; comments do not count."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if not key.startswith("_") or key == "_target_":
                yield from _differences(before.get(key), now.get(key), f"{id}::{key}" if id else key)
    elif before != now:
        yield id, before, now
