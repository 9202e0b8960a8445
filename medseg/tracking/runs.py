"""Runs: settings, figures and files of one training, evaluation or prediction.

Nothing that names a person or a machine's folders is recorded: user name, git remote and folders on the host stay out.
"""

import csv
import io
import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from medseg.errors import ConfigError
from medseg.tracking.store import alone, failures, first_line, is_server, prepare, store_uri, without_password
from medseg.tracking.surroundings import device_name, git_tags, versions
from medseg.tracking.wording import MAX_VALUE, flatten, without_folders
from medseg.writing import aside

logger = logging.getLogger(__name__)

ENVIRONMENT_TAGS = ("medseg", "monai", "torch", "cores", "device")  # all else is in environment.json
BATCH = {"params": 100, "metrics": 1000}  # MLflow takes no more in one call


def start_run(
    *, runs_dir: Path, experiment: str, name: str | None = None, tags: Mapping[str, str] | None = None
) -> "Run":
    """Start a run of its own in MLflow, and make its folder `runs_dir/<date-time>-<name>`.

    The folder's `run.json` holds `run_id, experiment, name, started`; MLflow shows the run under the folder's name.

    Args:
        runs_dir: the project's folder of runs, made if absent.
        experiment: MLflow experiment, made if absent.
        name: what the run is about; the experiment's name if absent.
        tags: further MLflow tags.

    Raises:
        ConfigError: if MLflow is not installed, or its store cannot be reached.
    """
    runs_dir = runs_dir.resolve()
    runs_dir.mkdir(parents=True, exist_ok=True)
    uri = store_uri(runs_dir)
    prepare()
    from mlflow import MlflowClient

    folder = _new_folder(runs_dir, name or experiment)
    own_tags = {"mlflow.user": "", "mlflow.source.name": experiment, "mlflow.source.type": "LOCAL"}
    try:
        with alone(runs_dir):
            client = MlflowClient(uri)
            experiment_id = _experiment_id(client, experiment, None if is_server(uri) else runs_dir / "mlartifacts")
        run = client.create_run(experiment_id, tags=own_tags | dict(tags or {}), run_name=folder.name)
    except failures() as error:
        folder.rmdir()
        raise ConfigError(
            f"MLflow's store {without_password(uri)} cannot be used ({first_line(error)}). "
            "Check MLFLOW_TRACKING_URI, or unset it to record runs in the runs folder."
        ) from error
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    about = {"run_id": run.info.run_id, "experiment": experiment, "name": folder.name, "started": started}
    with aside(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Run(client, run.info.run_id, folder, uri)


class Run:
    """One run in MLflow.

    Recording never stops a training: what MLflow does not take is named in one warning, and metrics are kept for the
    next `flush`.

    Attributes:
        run_id: MLflow's id of the run.
        folder: the run's own folder.
        uri: MLflow's store.
    """

    def __init__(self, client: Any, run_id: str, folder: Path, uri: str) -> None:
        self.run_id, self.folder, self.uri = run_id, folder, uri
        self._client = client
        self._metrics: list[Any] = []

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings, nested ones as `outer.inner`; folders of the host are cut from values."""
        from mlflow.entities import Param

        entities = [Param(key[:250], value) for key, value in flatten(without_folders(dict(params))).items()]
        with self._going_on("parameters"):
            for batch in _batches(entities, BATCH["params"]):
                self._client.log_batch(self.run_id, params=batch)

    def log_recipe(self, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        """Record the merged recipe as `recipe.json` and parameters, the overrides as `overrides.json` and a tag."""
        self.log_params(recipe)
        self._log_json(recipe, "recipe.json")
        self._log_json(overrides, "overrides.json")
        flat = flatten(without_folders(dict(overrides)))
        self._set_tags({"overrides": " ".join(f"{key}={value}" for key, value in flat.items())})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Keep figures for the next `flush`; NaN and infinite ones are left out, MLflow cannot draw them."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics += [Metric(key, float(v), now, step) for key, v in metrics.items() if math.isfinite(v)]

    def flush(self) -> None:
        """Send the kept metrics in one call."""
        with self._going_on("metrics"):
            while batch := self._metrics[: BATCH["metrics"]]:
                self._client.log_batch(self.run_id, metrics=batch)
                del self._metrics[: len(batch)]

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record rows as the artifact `<name>.csv`; its columns are the rows' keys, in order of first use."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(without_folders(dict(row)) for row in rows)
        with self._going_on(name):
            self._client.log_text(self.run_id, text.getvalue(), f"{name.removesuffix('.csv')}.csv")

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Record a copy of a file as an artifact, in `folder` of the run's artifacts."""
        with self._going_on(path.name):
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_environment(self) -> None:
        """Record what the run ran on: git commit, versions, system, cores, memory, device."""
        about = {
            **versions(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "device": device_name(),
        }
        self._log_json(about, "environment.json")
        self._set_tags({**git_tags(), **{key: str(about[key]) for key in ENVIRONMENT_TAGS if key in about}})

    def log_data(self, fingerprint: Mapping[str, Any]) -> None:
        """Record which data was used: its `sha256` and counts, as MLflow's dataset of the run, tags and `data.json`."""
        from mlflow.entities import Dataset, DatasetInput

        self._log_json(fingerprint, "data.json")
        tags = flatten(without_folders(dict(fingerprint)))
        self._set_tags({f"data.{key}": value for key, value in tags.items()})
        digest = str(fingerprint.get("sha256", "unknown"))[:36]  # MLflow keeps no more
        with self._going_on("data"):
            dataset = Dataset(name="data", digest=digest, source_type="local", source="{}", profile=json.dumps(tags))
            self._client.log_inputs(self.run_id, [DatasetInput(dataset)])

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], *, error: str | None = None) -> None:
        """Send what is left and close the run; `error` is shown as its tag."""
        self.flush()
        if error:
            self._set_tags({"error": without_folders(error)})
        with self._going_on("the end of the run"):
            self._client.set_terminated(self.run_id, status)

    def _log_json(self, content: Mapping[str, Any], name: str) -> None:
        text = json.dumps(without_folders(dict(content)), indent=2, default=str) + "\n"
        with self._going_on(name):
            self._client.log_text(self.run_id, text, name)

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with self._going_on("tags"):
            entities = [RunTag(key, value[:MAX_VALUE]) for key, value in tags.items()]
            self._client.log_batch(self.run_id, tags=entities)

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        try:
            yield
        except failures() as error:
            logger.warning("MLflow did not record %s (%s); the run goes on", what, first_line(error))


def _experiment_id(client: Any, name: str, artifacts: Path | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _new_folder(runs_dir: Path, name: str) -> Path:
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


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
