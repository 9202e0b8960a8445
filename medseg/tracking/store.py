"""Where runs are recorded, and how MLflow is reached: it sends nothing home and does not wait for minutes."""

import http.client
import logging
import os
import re
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.tracking.wording import without_folders
from medseg.writing import aside

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"  # MLflow reads it at each call
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # on by default in MLflow; read again at each event, so a late setting counts
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's 7 tries at a dead server hold a training up for minutes
    TIMEOUT: "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # may hold a password
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
ARTIFACTS = "mlartifacts"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
ANSWER_S = 6.0  # a server that needs longer is taken for dead before a training
REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "RESOURCE_ALREADY_EXISTS",
    "NOT_IMPLEMENTED",
)


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


def connect(runs_dir: Path) -> tuple[Any, str]:
    """MLflow's client for the store of `runs_dir`, and the store's address.

    Raises:
        ConfigError: if MLflow is not installed, or a server does not answer within `ANSWER_S`.
    """
    uri = store_uri(runs_dir)
    if uri.startswith(("http:", "https:")) and (reason := _unreachable(uri)):
        raise unusable(uri, reason)
    prepare()
    from mlflow import MlflowClient

    try:
        with alone(runs_dir):
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                _make_or_follow(runs_dir)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)  # makes the store
    except failures() as error:
        raise unusable(uri, first_line(error)) from error
    return client, uri


def check_store(runs_dir: Path) -> None:
    """Ask whether runs can be recorded, before hours of preparing data.

    Raises:
        ConfigError: if MLflow is not installed, or its store cannot be reached within ten seconds.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    connect(runs_dir.resolve())


def _make_or_follow(runs_dir: Path) -> None:
    """Make the store of `runs_dir` if there is none, whole or not at all: MLflow takes no half-made one."""
    store = runs_dir / "mlflow.db"
    if store.exists():
        _follow_move(store)
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in runs_dir.glob(".*-mlflow.db*"):  # of a process that was killed here
        left.unlink()
    with aside(store) as temporary:
        made = SqlAlchemyStore(f"sqlite:///{temporary.as_posix()}", (runs_dir / ARTIFACTS).as_uri())
        made.engine.dispose()


def _follow_move(store: Path) -> None:
    """Say where artifacts are now, in a store that was moved or copied with them: MLflow notes full addresses."""
    here = (store.parent / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(store, timeout=60)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        noted = connection.execute("SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%'")
        elsewhere = {place.partition(f"/{ARTIFACTS}")[0] + f"/{ARTIFACTS}" for (place,) in noted if ARTIFACTS in place}
        for before in sorted(elsewhere - {here}):
            for table, column in ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (here, len(before) + 1, len(before), before),
                )


def unusable(uri: str, reason: str) -> ConfigError:
    """The error for a store that cannot be used."""
    return ConfigError(
        f"MLflow's store {without_password(uri)} cannot be used ({reason}). "
        "Check MLFLOW_TRACKING_URI, or unset it to record runs in the runs folder."
    )


def _unreachable(uri: str) -> str | None:
    """Why a server gives no answer; None if it gives any.

    Asked before MLflow is imported, and in a thread: names are looked up without a limit, and a server may accept and
    say nothing.
    """
    reasons = [f"no answer within {ANSWER_S:.0f} s"]
    asking = threading.Thread(target=_ask, args=(uri, reasons), daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    return reasons[-1] if reasons else None


def _ask(uri: str, reasons: list[str]) -> None:
    address = re.sub(r"//[^/@\s]*@", "//", uri).rstrip("/") + "/health"
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_S):
            reasons.clear()
    except urllib.error.HTTPError:  # it is there, and wants a password that MLflow has
        reasons.clear()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reasons.append(first_line(error))


@contextmanager
def time_for(size: int) -> Iterator[None]:
    """Let a server take a second longer for each megabyte: it may store a file elsewhere before it answers."""
    usual = os.environ.get(TIMEOUT, ENVIRONMENT[TIMEOUT])
    os.environ[TIMEOUT] = str(int(usual) + size // 1_000_000)
    try:
        yield
    finally:
        os.environ[TIMEOUT] = usual


def failures() -> tuple[type[Exception], ...]:
    """What a store that cannot be reached or written raises; no connection and no disk space are OSErrors."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # MLflow's own store lets some through

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


def is_refusal(error: Exception) -> bool:
    """Whether a store has answered, and will never take what it was given."""
    return getattr(error, "error_code", None) in REFUSALS


def first_line(error: Exception) -> str:
    """First line of an error's message, without folders and passwords."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return str(without_folders(without_password(line)))[:300]


def without_password(text: str) -> str:
    """Text whose addresses are fit for a message."""
    return re.sub(r"//[^/@\s]*@", "//", text)
