"""Runs as they were recorded, read back: from MLflow, and from their folders."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medseg.errors import ConfigError
from medseg.tracking import life
from medseg.tracking.journal import FOLDER, Journal
from medseg.tracking.opening import ABOUT, read_about
from medseg.tracking.store import ARTIFACTS, connect, failures, first_line, unusable
from medseg.tracking.wording import flatten

MANY = 50_000  # MLflow's own limit of a search
SHORT = 8  # characters of a run id that will do


@dataclass(frozen=True)
class Recorded:
    """A run that was recorded.

    Attributes:
        run_id: MLflow's id.
        name: of the run.
        experiment: its experiment.
        status: MLflow's, or "STALE": RUNNING there, while no process writes it.
        started_ms: since 1970; None where nobody knows.
        ended_ms: likewise.
        metrics: name -> latest value.
        params: flat settings as text.
        tags: all of them.
        folder: the run's own folder, if it is here.
        peaks: name -> largest value, of a run that was read from its folder.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    started_ms: int | None = None
    ended_ms: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    peaks: Mapping[str, float] = field(default_factory=dict)


def list_runs(runs_dir: Path) -> list[Recorded]:
    """All runs of a store, newest first.

    Nothing is changed: a run whose process is gone is called STALE, and the next launch closes it as KILLED.

    Raises:
        ConfigError: if MLflow is not installed, or its store cannot be reached.
    """
    runs_dir = runs_dir.resolve()
    if not runs_dir.is_dir():
        raise ConfigError(f"no folder of runs {runs_dir.name}: give the one that trainings write to with --runs")
    client, uri = connect(runs_dir)
    folders = _folders(runs_dir)
    try:
        names = {found.experiment_id: found.name for found in client.search_experiments()}
        runs: list[Any] = []
        token = None
        while names:
            page = client.search_runs(list(names), max_results=MANY, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
    except failures() as error:
        raise unusable(uri, first_line(error)) from error
    gone = not os.environ.get("MLFLOW_TRACKING_URI")  # runs of a shared store may have their folders elsewhere
    listed = [_recorded(run, names[run.info.experiment_id], folders.get(run.info.run_id), gone=gone) for run in runs]
    return sorted(listed, key=_newest_first)


def recorded_folder(folder: Path) -> Recorded:
    """The run of a folder, from what lies in it; MLflow is not asked.

    Raises:
        ConfigError: if it is no run folder.
    """
    about = read_about(folder)
    if not about:
        raise ConfigError(f"no run in {folder.name} ({ABOUT} is missing): give the folder of a run, such as runs/NAME")
    journal = Journal(folder)
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for _, record in journal.records():
        tags |= record.get("start", {}).get("tags", {})
        tags |= record.get("tags", {})
        params |= record.get("params", {})
        figures = record.get("metrics", {})
        metrics |= figures
        peaks |= {key: max(value, peaks.get(key, value)) for key, value in figures.items()}
    status = journal.status() if journal.start() else "UNKNOWN"
    stale = status == "RUNNING" and life.is_dead(folder)
    return Recorded(
        run_id=about.get("run_id", ""),
        name=about.get("name", folder.name),
        experiment=about.get("experiment", ""),
        status="STALE" if stale else status,
        started_ms=journal.start().get("time"),
        metrics=metrics,
        params=params,
        tags=tags,
        folder=folder,
        peaks=peaks,
    )


def find_recorded(run: str, runs_dir: Path) -> Recorded:
    """A run by its MLflow id, of which the first 8 characters will do, or by its name.

    Raises:
        ConfigError: if there is no such run or more than one, or the store cannot be reached.
    """
    found = [
        one
        for one in list_runs(runs_dir)
        if run in (one.run_id, one.name) or (len(run) >= SHORT and one.run_id.startswith(run))
    ]
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} runs"
        raise ConfigError(f"{what} '{run}' in {runs_dir.name}: `medseg runs` lists names and ids; --runs says where")
    [one] = found
    return one if one.folder is None else replace(one, peaks=recorded_folder(one.folder).peaks)


def artifact(run: Recorded, name: str, *, runs_dir: Path) -> str | None:
    """Text of a run's artifact; None if it has none of this name.

    Taken from the run's folder, else from MLflow's artifacts, else from its server.

    Raises:
        ConfigError: if MLflow cannot be reached.
    """
    here = [runs_dir / ARTIFACTS / run.run_id / "artifacts" / name]
    if run.folder is not None:
        here = [run.folder / FOLDER / "artifacts" / name, run.folder.parent / here[0].relative_to(runs_dir), *here]
    for path in here:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    if run.folder is not None or not run.run_id:
        return None
    client, uri = connect(runs_dir)
    try:
        if name not in {listed.path for listed in client.list_artifacts(run.run_id, name.rpartition("/")[0] or None)}:
            return None
        with TemporaryDirectory() as folder:
            return Path(client.download_artifacts(run.run_id, name, folder)).read_text(encoding="utf-8")
    except failures() as error:
        raise unusable(uri, first_line(error)) from error


def flat_settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A recipe's settings as `outer.inner -> text`, as MLflow shows them."""
    return flatten(recipe)


def _recorded(run: Any, experiment: str, folder: Path | None, *, gone: bool) -> Recorded:
    """A run of MLflow's; `gone` says whether one without a folder here is written by nobody."""
    stale = run.info.status == "RUNNING" and (gone if folder is None else life.is_dead(folder))
    return Recorded(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment=experiment,
        status="STALE" if stale else run.info.status,
        started_ms=run.info.start_time,
        ended_ms=run.info.end_time,
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        folder=folder,
    )


def _folders(runs_dir: Path) -> dict[str, Path]:
    """Run id -> the run's folder."""
    found: dict[str, Path] = {}
    for depth in ("*", "*/*"):  # folds may lie in the folder of their cross-validation
        for path in runs_dir.glob(f"{depth}/{ABOUT}"):
            try:
                about = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(about, dict) and about.get("run_id"):
                found[about["run_id"]] = path.parent
    return found


def _newest_first(run: Recorded) -> tuple[int, str]:
    return -(run.started_ms or 0), run.name
