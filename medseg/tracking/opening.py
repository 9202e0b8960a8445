"""A run folder's page in MLflow: found again, or made from what the folder holds."""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.tracking.journal import Journal
from medseg.tracking.store import ARTIFACTS, failures, first_line, is_server
from medseg.writing import aside

ABOUT = "run.json"
KEY_TAG, PARENT_TAG = "medseg.key", "mlflow.parentRunId"  # a run's key is the same in every store, its run id is not


def new_folder(runs_dir: Path, name: str) -> Path:
    """A folder of its own, `<date-time>-<name>`."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('.-') or 'run'}"
    number = 1
    while True:
        folder = runs_dir / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def read_about(folder: Path) -> dict[str, str]:
    """What `run.json` says: `run_id, experiment, name, started`; empty if there is none."""
    try:
        about: dict[str, str] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about


def start_of(folder: Path) -> dict[str, Any]:
    """What MLflow needs to make the run: `key, experiment, name, time, tags, parent`.

    A folder without a journal is of an earlier medseg; then it is what `run.json` tells.
    """
    about = read_about(folder)
    known = {
        "key": about.get("run_id", folder.name),
        "experiment": about.get("experiment", "imported"),
        "name": about.get("name", folder.name),
        "time": int(folder.stat().st_mtime * 1000),
        "tags": {},
        "parent": None,
    }
    return known | Journal(folder).start()


def find_run(client: Any, folder: Path) -> str | None:
    """MLflow's id of the folder's run, if this store has it; one deleted in the pages comes back.

    Raises:
        Exception: one of `store.failures()`.
    """
    from mlflow.exceptions import MlflowException

    start = start_of(folder)
    if run_id := read_about(folder).get("run_id"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        else:
            if run.info.lifecycle_stage == "deleted":
                client.restore_run(run_id)
            return str(run_id)
    return find_key(client, start["experiment"], start["key"])


def find_key(client: Any, experiment: str, key: str) -> str | None:
    """MLflow's id of the run with this key, if this store has it."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs([found.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def key_of(client: Any, run_id: str) -> str | None:
    """Key of a run that MLflow has; None for one that medseg did not make.

    Raises:
        ConfigError: if MLflow has no such run, or does not answer.
    """
    try:
        key: str | None = client.get_run(run_id).data.tags.get(KEY_TAG)
    except failures() as error:
        raise ConfigError(
            f"MLflow has no run {run_id}: give the run id of the cross-validation ({first_line(error)})"
        ) from error
    return key


def make_run(client: Any, folder: Path, *, runs_dir: Path, uri: str) -> str:
    """Make the folder's run in MLflow, still without what it recorded, and write its `run.json`; its id.

    To be called by one process at a time (`store.alone`): experiments are made too.

    Raises:
        Exception: one of `store.failures()`.
    """
    start = start_of(folder)
    artifacts = None if is_server(uri) else runs_dir / ARTIFACTS
    experiment_id = _experiment_id(client, start["experiment"], artifacts)
    tags = start["tags"] | {KEY_TAG: start["key"]}
    if start["parent"] and (parent := find_key(client, start["experiment"], start["parent"])):
        tags[PARENT_TAG] = parent
    run = client.create_run(experiment_id, start_time=start["time"], tags=tags, run_name=start["name"])
    write_about(folder, str(run.info.run_id), start)
    return str(run.info.run_id)


def write_about(folder: Path, run_id: str, start: Mapping[str, Any]) -> None:
    """Write `run.json`."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(start["time"] / 1000))
    about = {"run_id": run_id, "experiment": start["experiment"], "name": start["name"], "started": started}
    with aside(folder / ABOUT) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _experiment_id(client: Any, name: str, artifacts: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
