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
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil

from medseg.errors import ConfigError
from medseg.tracking.journal import Journal, Record
from medseg.tracking.life import BEAT_S, claim, give_sign, take_sign
from medseg.tracking.model import model_card, requirements
from medseg.tracking.opening import find_run, key_of, make_run, new_folder, read_about, start_of, write_about
from medseg.tracking.outbox import Outbox
from medseg.tracking.store import alone, connect, failures, first_line, unusable
from medseg.tracking.surroundings import device_name, git_tags, versions
from medseg.tracking.system import Watch
from medseg.tracking.upkeep import mark_dead_runs
from medseg.tracking.wording import MAX_VALUE, flatten, names_of_files, without_folders

logger = logging.getLogger(__name__)

ENVIRONMENT_TAGS = ("medseg", "monai", "torch", "cores", "device")  # all else is in environment.json


def start_run(
    *,
    runs_dir: Path,
    experiment: str,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    parent: str | None = None,
) -> "Run":
    """Start a run of its own in MLflow, and make its folder `runs_dir/<date-time>-<name>`.

    The folder's `run.json` holds `run_id, experiment, name, started`; MLflow shows the run under the folder's name.
    Runs that dead processes left RUNNING become KILLED first.

    Args:
        runs_dir: the project's folder of runs, made if absent.
        experiment: MLflow experiment, made if absent.
        name: what the run is about; the experiment's name if absent.
        tags: further MLflow tags.
        parent: MLflow's id of the run this one is a part of, such as the cross-validation of a fold.

    Raises:
        ConfigError: if MLflow is not installed, its store cannot be reached, or has no run `parent`.
    """
    runs_dir = runs_dir.resolve()
    runs_dir.mkdir(parents=True, exist_ok=True)
    client, uri = connect(runs_dir)
    mark_dead_runs(runs_dir)
    parent_key = key_of(client, parent) if parent else None
    folder = new_folder(runs_dir, name or experiment)
    try:
        start = {
            "key": uuid4().hex,
            "experiment": experiment,
            "name": folder.name,
            "time": int(time.time() * 1000),
            "tags": {
                "mlflow.user": "",
                "mlflow.source.name": experiment,
                "mlflow.source.type": "LOCAL",
                **(tags or {}),
            },
            "parent": parent_key,
        }
        claim(folder)
        Journal(folder).append({"start": start})  # first: a kill from here on leaves enough to close the run
        with alone(runs_dir):
            run_id = make_run(client, folder, runs_dir=runs_dir, uri=uri)
    except failures() as error:
        shutil.rmtree(folder)
        raise unusable(uri, first_line(error)) from error
    return Run(Outbox(client, run_id, folder), uri)


def resume_run(folder: Path, *, runs_dir: Path | None = None) -> "Run":
    """Open the run of a folder again, RUNNING and without its error.

    If the store does not know it, because folder or store are others now, it is made again from the folder. If the
    store fails here, the run stays what it was.

    Args:
        folder: the run's folder.
        runs_dir: whose store to record into; the folder's parent if absent.

    Raises:
        ConfigError: if it is no run folder, another process writes it, or MLflow is missing or cannot be reached.
    """
    folder = folder.resolve()
    runs_dir = folder.parent if runs_dir is None else runs_dir.resolve()
    outbox, uri = _reopened(folder, runs_dir)
    ending = _ending(outbox.journal)
    outbox.put({"status": "RUNNING", "time": int(time.time() * 1000)})
    try:
        outbox.send_or_raise()
    except failures() as error:
        for record in ending:
            outbox.put(record)
        raise unusable(uri, first_line(error)) from error
    mark_dead_runs(runs_dir)
    return Run(outbox, uri)


@contextmanager
def append_to(folder: Path) -> Iterator["Run"]:
    """Open the run of a folder to record more in it: its status, its end and its error stay what they are.

    Args:
        folder: the folder of a run that has ended.

    Raises:
        ConfigError: as `resume_run`.
    """
    folder = folder.resolve()
    run = Run(*_reopened(folder, folder.parent))
    run._watch.stop()  # the machine's load has nothing to do with this run
    try:
        yield run
    finally:
        run.close()


def _reopened(folder: Path, runs_dir: Path) -> tuple[Outbox, str]:
    """Outbox of a run folder that this process alone writes from now on, and the store's address."""
    if not read_about(folder):
        raise ConfigError(f"no run in {folder} (run.json is missing): give the folder of a run, such as runs/NAME")
    runs_dir.mkdir(parents=True, exist_ok=True)
    client, uri = connect(runs_dir)
    claim(folder)
    try:
        with alone(runs_dir):
            run_id = find_run(client, folder) or make_run(client, folder, runs_dir=runs_dir, uri=uri)
        write_about(folder, run_id, start_of(folder))
        journal = Journal(folder)
        if not journal.start():  # of an earlier medseg
            journal.append({"start": start_of(folder)})
        return Outbox(client, run_id, folder), uri
    except failures() as error:
        raise unusable(uri, first_line(error)) from error


def _ending(journal: Journal) -> list[Record]:
    """The records of how a run has ended, with its error; none of one that is RUNNING."""
    ending: list[Record] = []
    for _, record in journal.records():
        if record.get("status") == "RUNNING":
            ending = []
        elif "status" in record:
            ending.append(record)
        elif "error" in record.get("tags", {}):
            ending.append({"tags": {"error": record["tags"]["error"]}})
    return ending


class Run:
    """One run in MLflow, and its folder.

    Everything is written into the folder before MLflow is asked, so recording never stops a training: what MLflow does
    not take now is sent later, at the next `flush`, at the end, at the next launch, or by `medseg runs import`.

    Attributes:
        run_id: MLflow's id of the run.
        folder: the run's own folder.
        uri: MLflow's store.
    """

    def __init__(self, outbox: Outbox, uri: str) -> None:
        self.run_id, self.folder, self.uri = outbox.run_id, outbox.journal.folder, uri
        self._outbox = outbox
        self._started = start_of(self.folder)["time"] / 1000
        self._signed_at = time.monotonic()
        self._watch = Watch(self._live, name=self.folder.name)
        self._params, self._figures = _recorded(outbox.journal)  # of a resumed run

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings, nested ones as `outer.inner`; folders of the host are cut from values.

        MLflow keeps the first value of each; one that a resumed run changes is the tag `resumed.<name>`.
        """
        flat = {key[:250]: value for key, value in flatten(without_folders(dict(params))).items()}
        new = {key: value for key, value in flat.items() if key not in self._params}
        changed = {f"resumed.{key}"[:250]: v for key, v in flat.items() if self._params.get(key, v) != v}
        self._params |= new
        self._record({"params": new}, {"tags": changed})

    def log_recipe(self, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        """Record the merged recipe as `recipe.json` and parameters, the overrides as `overrides.json` and a tag."""
        self.log_params(recipe)
        self._log_json(recipe, "recipe.json")
        self._log_json(overrides, "overrides.json")
        flat = flatten(without_folders(dict(overrides)))
        self._set_tags({"overrides": " ".join(f"{key}={value}" for key, value in flat.items())})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Keep figures for the next `flush`, which comes by itself within a minute or so.

        NaN and infinite ones are left out, MLflow cannot draw them; so are those that a resumed training finds again.
        """
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        new = {key: value for key, value in finite.items() if self._figures.get((key, step)) != value}
        if new:
            self._outbox.put({"metrics": new, "step": step, "time": int(time.time() * 1000)})
        if time.monotonic() - self._outbox.tried_at > BEAT_S:
            self.flush()

    def flush(self) -> None:
        """Send what is kept."""
        self._outbox.send()

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record rows as the artifact `<name>.csv`; its columns are the rows' keys, in order of first use."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(without_folders(dict(row)) for row in rows)
        self._log_artifact(text.getvalue(), f"{name.removesuffix('.csv')}.csv")

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Record a copy of a file as an artifact, in `folder` of the run's artifacts."""
        self._log_artifact(path, f"{folder}/{path.name}" if folder else path.name)

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

    def log_data(
        self,
        fingerprint: Mapping[str, Any],
        *,
        split: Mapping[str, Sequence[str]] | None = None,
        volumes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Record which data was used, as MLflow's dataset of the run, tags and artifacts.

        Args:
            fingerprint: `sha256` of the contents and counts; the artifact `data.json`.
            split: case ids of `training`, `validation`, ...; the artifact `split.json`.
            volumes: one row a case with `case_id` and `<region>_ml` (of 2D images `_px`); the artifact
                `region_volumes.csv`, and the mean of each region in the dataset.
        """
        self._log_json(fingerprint, "data.json")
        tags = flatten(without_folders(dict(fingerprint)))
        digest = str(fingerprint.get("sha256", "unknown"))[:36]  # MLflow keeps no more
        profile: dict[str, Any] = dict(tags)
        if split:
            self._log_json(split, "split.json")
            profile["split"] = {name: len(case_ids) for name, case_ids in split.items()}
        if volumes:
            self.log_table(volumes, "region_volumes")
            profile |= {f"mean_volume_{unit}": means for unit in ("ml", "px") if (means := _means(volumes, unit))}
        self._set_tags({f"data.{key}": value for key, value in tags.items()})
        data = {"name": "data", "digest": digest, "profile": json.dumps(profile), "context": "training"}
        self._record({"data": [data]})

    def log_model(
        self, bundle: Path, *, register_as: str | None = None, alias: str | None = None, folder: str = "bundle"
    ) -> None:
        """Record a bundle as an MLflow model with a signature; once, at the end, for its weights may be large.

        `mlflow.pyfunc.load_model("runs:/<run id>/bundle")` loads it through `medseg.served`; nothing is pickled.

        Args:
            bundle: the bundle's folder.
            register_as: name of a registered model that gets this as its newest version.
            alias: what the registered model calls this version, such as "best".
            folder: where in the run's artifacts.

        Raises:
            ConfigError: if it is no bundle, or an alias is given without a name.
        """
        if alias and not register_as:
            raise ConfigError(f"alias {alias!r} needs the name of a registered model: give register_as too")
        card = model_card(bundle, self.run_id, folder)
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            within = path.parent.relative_to(bundle)
            self.log_file(path, f"{folder}/{within.as_posix()}" if within.parts else folder)
        self._log_artifact(requirements(), f"{folder}/requirements.txt")
        self._log_artifact(card, f"{folder}/MLmodel")  # last: with it, the folder is a model
        if register_as:
            self._record({"register": {"name": register_as, "artifact_path": folder, "alias": alias}})

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every figure so far, as its (step, value) pairs in order of steps; the latest value of a step counts."""
        _, figures = _recorded(self._outbox.journal)
        history: dict[str, list[tuple[int, float]]] = {}
        for (name, step), value in sorted(figures.items()):
            history.setdefault(name, []).append((step, value))
        return history

    def finish(
        self,
        status: Literal["FINISHED", "FAILED", "KILLED"],
        *,
        error: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """Send what is left and close the run.

        Args:
            status: how it ended.
            error: one line, shown as the run's tag.
            traceback: of the error, kept as the artifact `traceback.txt` without folders.
        """
        self._watch.stop()
        if error:
            self._outbox.put({"tags": {"error": without_folders(error)[:MAX_VALUE]}})
        if traceback:
            self._log_artifact(without_folders(names_of_files(traceback)), "traceback.txt")
        self._outbox.put({"status": status, "time": int(time.time() * 1000)})
        self.close()

    def close(self) -> None:
        """Send what is left, and write the run no more; its status stays."""
        self._watch.stop()
        if self._outbox.send(now=True):
            take_sign(self.folder)

    def _live(self, load: Mapping[str, float]) -> None:
        """Called by the watching thread, so it writes into the folder only."""
        seconds = int(time.time() - self._started)
        self._outbox.put({"metrics": load, "step": seconds, "time": int(time.time() * 1000)})
        if time.monotonic() - self._signed_at > BEAT_S:
            self._signed_at = time.monotonic()
            with suppress(OSError):
                give_sign(self.folder)

    def _log_json(self, content: Mapping[str, Any], name: str) -> None:
        self._log_artifact(json.dumps(without_folders(dict(content)), indent=2, default=str) + "\n", name)

    def _log_artifact(self, content: str | Path, name: str) -> None:
        try:
            kept = self._outbox.journal.keep(content, name)
        except OSError as error:
            logger.warning("%s cannot be kept in the run's folder (%s); the run goes on", name, first_line(error))
            return
        self._record({"artifact": kept, "to": name.rpartition("/")[0] or None})

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        self._record({"tags": {key[:250]: value[:MAX_VALUE] for key, value in tags.items()}})

    def _record(self, *records: Mapping[str, Any]) -> None:
        for record in records:
            if any(record.values()):
                self._outbox.put(record)
        self._outbox.send()


def _means(rows: Sequence[Mapping[str, Any]], unit: str) -> dict[str, float]:
    """Mean of each `<region>_<unit>` over the rows that have it."""
    columns = dict.fromkeys(key for row in rows for key in row if key.endswith(f"_{unit}"))
    volumes = {key.removesuffix(f"_{unit}"): [float(row[key]) for row in rows if key in row] for key in columns}
    return {region: round(sum(found) / len(found), 3) for region, found in volumes.items()}


def _recorded(journal: Journal) -> tuple[dict[str, str], dict[tuple[str, int], float]]:
    """Parameters, and the latest value of each figure at each step."""
    params: dict[str, str] = {}
    figures: dict[tuple[str, int], float] = {}
    for _, record in journal.records():
        params |= record.get("params", {})
        figures |= {(key, record["step"]): value for key, value in record.get("metrics", {}).items()}
    return params, figures
