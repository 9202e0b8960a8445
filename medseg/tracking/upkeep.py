"""Runs after their process: those left open by a dead one, and those brought from elsewhere."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.tracking import life
from medseg.tracking.journal import Journal
from medseg.tracking.opening import find_run, read_about, start_of, write_about
from medseg.tracking.outbox import Outbox
from medseg.tracking.store import alone, connect, failures, first_line

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
        journal.append({"status": "KILLED", "time": int(journal.path.stat().st_mtime * 1000)})
    run_id = find_run(client, folder)
    if run_id is None:  # of another store: `medseg runs import` brings it here
        return left
    if not read_about(folder):
        write_about(folder, run_id, start_of(folder))
    if Outbox(client, run_id, folder).send(now=True):
        life.take_sign(folder)
    return left
