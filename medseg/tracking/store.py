"""Where runs are recorded, and how MLflow is reached: it sends nothing home and does not wait for minutes."""

import logging
import os
import re
from pathlib import Path
from typing import Any

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


def connect(uri: str) -> Any:
    """MLflow's client of a store, with telemetry off.

    Raises:
        ConfigError: if MLflow is not installed.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise ConfigError("MLflow, which records runs, is not installed: pip install 'medseg[train]'") from error
    for noisy in ("alembic", "mlflow.store.db.utils"):  # a page of lines when the store is made
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(uri)


def failures() -> tuple[type[Exception], ...]:
    """What a store that cannot be reached or written raises; no connection and no disk space are OSErrors."""
    from mlflow.exceptions import MlflowException

    return MlflowException, OSError


def first_line(error: Exception) -> str:
    """First line of an error's message, without folders."""
    return str(without_folders(next(iter(str(error).splitlines()), type(error).__name__)))


def without_password(uri: str) -> str:
    """Address of a store, fit for a message."""
    return re.sub(r"//[^/@]*@", "//", uri)
