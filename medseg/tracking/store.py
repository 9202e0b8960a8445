"""Where runs are recorded, and how MLflow is reached: it sends nothing home and does not wait for minutes."""

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from medseg.errors import ConfigError
from medseg.tracking.wording import without_folders

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # on by default in MLflow; read again at each event, so a late setting counts
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's 7 tries at a dead server hold a training up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def store_uri(runs_dir: Path) -> str:
    """Where runs are recorded: `MLFLOW_TRACKING_URI`, else `mlflow.db` in `runs_dir`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs_dir.resolve() / 'mlflow.db').as_posix()}"


def is_server(uri: str) -> bool:
    """Whether the store is a server, which has pages and a place for artifacts of its own."""
    return uri.startswith(("http:", "https:", "databricks"))


@contextmanager
def alone(runs_dir: Path) -> Iterator[None]:
    """Hold others off the store of `runs_dir`: MLflow breaks when two processes make it at the same time.

    The lock is SQLite's, on a file of its own: it works on every system, and ends with the process.
    """
    with closing(sqlite3.connect(runs_dir / ".mlflow.lock", timeout=300, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        yield


def prepare() -> None:
    """Set MLflow up for this process: telemetry off, no minutes of waiting, no page of lines when a store is made.

    Raises:
        ConfigError: if MLflow is not installed.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise ConfigError("MLflow, which records runs, is not installed: pip install 'medseg[train]'") from error
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def failures() -> tuple[type[Exception], ...]:
    """What a store that cannot be reached or written raises; no connection and no disk space are OSErrors."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow's own store lets some through

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


def first_line(error: Exception) -> str:
    """First line of an error's message, without folders and passwords."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return str(without_folders(without_password(line)))[:300]


def without_password(text: str) -> str:
    """Text whose addresses are fit for a message."""
    return re.sub(r"//[^/@\s]*@", "//", text)
