"""The folds of a cross-validation, as their processes and the cross-validation's own see them.

The cross-validation's run folder holds `splits.json` and `folds/fold_0/fold.json`, which says which run trains that
fold; the runs themselves lie beside the cross-validation's.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil

from medseg.errors import ConfigError
from medseg.tracking.journal import Journal
from medseg.writing import aside

SPLITS, ABOUT = "splits.json", "fold.json"
LAUNCHER = "MEDSEG_LAUNCHER"  # environment variable: process number of the cross-validation
LOOK_S = 2.0


def fold_folder(parent: Path, fold: int) -> Path:
    """Where a cross-validation's run keeps what belongs to a fold."""
    return parent / "folds" / f"fold_{fold}"


def note_fold(parent: Path, fold: int, run: Path) -> None:
    """Say in the cross-validation's folder which run trains a fold."""
    with aside(fold_folder(parent, fold) / ABOUT) as path:
        path.write_text(json.dumps({"run": run.name}) + "\n", encoding="utf-8")


def find_fold(parent: Path, fold: int) -> Path | None:
    """Folder of the run of a fold, beside the cross-validation's; None if there is none, or it has been removed."""
    try:
        about = json.loads((fold_folder(parent, fold) / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    folder = parent.parent / str(about["run"])
    return folder if (folder / "run.json").is_file() else None


def is_finished(run: Path) -> bool:
    """Whether a run came to its end and has its bundle."""
    return Journal(run).status() == "FINISHED" and (run / "bundle" / "models" / "model.pt").is_file()


def parent_id(part_of: str | Path) -> str:
    """MLflow's id of the cross-validation whose run folder is given.

    Raises:
        ConfigError: if there is no such run.
    """
    try:
        return str(json.loads(Path(part_of, "run.json").read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"part_of: {Path(part_of).name} is no run's folder; give that of the cross-validation, or leave it out"
        ) from error


def end_with_launcher() -> None:
    """Let this process end by SIGTERM, its run KILLED, when the cross-validation that started it is gone.

    A killed cross-validation would else leave its folds training, which nobody waits for.
    """
    if number := os.environ.get(LAUNCHER):
        threading.Thread(target=_watch, args=(int(number),), daemon=True).start()


def _watch(number: int) -> None:
    try:
        launcher = psutil.Process(number)
        while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_S)
    except psutil.NoSuchProcess:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
