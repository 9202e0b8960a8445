"""Runs after their process: those left open by a dead one, and those brought from elsewhere."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medseg.errors import ConfigError
from medseg.tracking import life
from medseg.tracking.journal import Journal
from medseg.tracking.opening import ABOUT, find_run, make_run, read_about, start_of, write_about
from medseg.tracking.outbox import Outbox
from medseg.tracking.store import alone, connect, failures, first_line, unusable

logger = logging.getLogger(__name__)


def mark_dead_runs(runs_dir: Path) -> list[str]:
    """Close as KILLED what dead processes left RUNNING, and send what finished runs could not.

    A process of this machine is dead if no process has its number and start time; one of another machine if it gave no
    sign for ten minutes (`life.MISSED_S`; it gives one each minute).

    Args:
        runs_dir: the project's folder of runs.

    Returns:
        Names of the runs that are KILLED now.

    Raises:
        ConfigError: if MLflow is not installed, or its store cannot be reached.
    """
    runs_dir = runs_dir.resolve()
    open_runs = sorted(_open_runs(runs_dir))
    if not open_runs:
        return []
    client, _ = connect(runs_dir)
    killed = []
    with alone(runs_dir):  # two launches at a time would both write
        for folder in open_runs:
            try:
                if not _close(client, folder):
                    continue
            except failures() as error:
                logger.warning("run %s cannot be closed now (%s)", folder.name, first_line(error))
                continue
            killed.append(folder.name)
            logger.info("run %s was left by a process that is gone: KILLED", folder.name)
    return killed


class Imported(NamedTuple):
    """One run folder after `import_runs`."""

    name: str
    run_id: str | None
    what: Literal["imported", "completed", "complete", "incomplete", "running", "empty"]


def import_runs(folder: Path, *, runs_dir: Path) -> list[Imported]:
    """Bring run folders into a store: parameters, tags, figures with steps and times, artifacts, status.

    Nothing is doubled: of a run that the store has, only what is missing is sent. A run whose process is gone is
    KILLED; one that still is written is left alone.

    Args:
        folder: a run's folder, or a folder above run folders.
        runs_dir: the project's folder of runs, whose store gets them.

    Returns:
        The runs, oldest first: `imported` (new here), `completed` (something was missing), `complete` (nothing was),
        `incomplete` (files were not taken), `running` (left alone) or `empty` (an earlier medseg's, nothing to bring).

    Raises:
        ConfigError: if there is no run folder, MLflow is not installed, or its store cannot be reached.
    """
    folder, runs_dir = folder.resolve(), runs_dir.resolve()
    found = sorted((path.parent for path in folder.rglob(ABOUT)), key=lambda run: (start_of(run)["time"], run))
    if not found:
        raise ConfigError(f"no run in {folder} or below (run.json is missing): give a run's folder, or one above runs")
    runs_dir.mkdir(parents=True, exist_ok=True)
    client, uri = connect(runs_dir)
    try:
        return [_import(client, run, runs_dir=runs_dir, uri=uri) for run in found]
    except failures() as error:
        raise unusable(uri, first_line(error)) from error


def _import(client: Any, folder: Path, *, runs_dir: Path, uri: str) -> Imported:
    journal = Journal(folder)
    if not journal.start():
        return Imported(folder.name, None, "empty")
    left = journal.status() == "RUNNING"
    if left and not life.is_dead(folder):
        return Imported(folder.name, None, "running")
    if left:
        _end(journal)
    with alone(runs_dir):
        known = find_run(client, folder)
        run_id = known or make_run(client, folder, runs_dir=runs_dir, uri=uri)
        write_about(folder, run_id, start_of(folder))
        outbox = Outbox(client, run_id, folder)
        missing = outbox.is_behind()
        outbox.send_or_raise()
    if outbox.is_behind():
        return Imported(folder.name, run_id, "incomplete")
    life.take_sign(folder)
    return Imported(folder.name, run_id, "imported" if known is None else "completed" if missing else "complete")


def _end(journal: Journal) -> None:
    """Say that the run was killed, at the time of the last thing it recorded."""
    journal.append({"status": "KILLED", "time": int(journal.path.stat().st_mtime * 1000)})


def _open_runs(runs_dir: Path) -> Iterator[Path]:
    for depth in ("*", "*/*"):  # folds may lie in the folder of their cross-validation
        for found in runs_dir.glob(f"{depth}/{life.sign(Path()).as_posix()}"):
            yield found.parents[1]


def _close(client: Any, folder: Path) -> bool:
    """Whether the run was RUNNING for nobody and is KILLED now; its end is the last thing it recorded."""
    journal = Journal(folder)
    left = journal.status() == "RUNNING"
    if left and not life.is_dead(folder):
        return False
    if left:
        _end(journal)
    run_id = find_run(client, folder)
    if run_id is None:  # of another store: `medseg runs import` brings it here
        return left
    if not read_about(folder):
        write_about(folder, run_id, start_of(folder))
    if Outbox(client, run_id, folder).send(now=True):
        life.take_sign(folder)
    return left
