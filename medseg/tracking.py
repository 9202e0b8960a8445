"""The one door to MLflow: runs, parameters, metrics, artifacts, and the page that shows them.

Nothing that names a person or a machine's folders is recorded: user name, git remote and folders on the host stay out.
"""

import csv
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import psutil

from medseg.errors import ConfigError
from medseg.writing import aside

logger = logging.getLogger(__name__)

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # on by default in MLflow; read again at each event, so a late setting counts
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's 7 tries at a dead server hold a training up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
PACKAGES = ("medseg", "monai", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "pytorch-ignite", "mlflow")
COMMENT_KEYS = ("_about_", "_desc_")
MAX_VALUE = 500  # characters of a parameter or tag; the whole recipe is an artifact
BATCH = {"params": 100, "metrics": 1000}  # MLflow takes no more in one call

# a path of two or more folders inside a longer text; divisions such as "(@a)/2/3" and "x/y/z" are none
FOLDERS = re.compile(r"(?<![\w.)\]])(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/:,;()]+[\\/])+")


def store_uri(runs_dir: Path) -> str:
    """Where runs are recorded: `MLFLOW_TRACKING_URI`, else `mlflow.db` in `runs_dir`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(runs_dir.resolve() / 'mlflow.db').as_posix()}"


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
    client = _connect(uri)
    folder = _new_folder(runs_dir, name or experiment)
    own_tags = {"mlflow.user": "", "mlflow.source.name": experiment, "mlflow.source.type": "LOCAL"}
    try:
        experiment_id = _experiment_id(client, experiment, None if _is_server(uri) else runs_dir / "mlartifacts")
        run = client.create_run(experiment_id, tags=own_tags | dict(tags or {}), run_name=folder.name)
    except _failures() as error:
        folder.rmdir()
        raise ConfigError(
            f"MLflow's store {_without_password(uri)} cannot be used ({_first_line(error)}). "
            "Check MLFLOW_TRACKING_URI, or unset it to record runs in the runs folder."
        ) from error
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    about = {"run_id": run.info.run_id, "experiment": experiment, "name": folder.name, "started": started}
    with aside(folder / "run.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Run(client, run.info.run_id, folder, uri)


def serve_ui(
    runs_dir: Path, *, port: int = 5000, open_browser: bool = True, on_ready: Callable[[str], None] | None = None
) -> int:
    """Show the runs in MLflow's own pages, on this machine alone, until interrupted.

    Args:
        runs_dir: the project's folder of runs.
        port: where it answers, `http://127.0.0.1:PORT`.
        open_browser: whether to open the page once it answers.
        on_ready: called with one line that names the page, once it answers.

    Returns:
        The server's exit status.

    Raises:
        ConfigError: if there is no store yet, it is a server of its own, MLflow is not installed or the port is taken.
    """
    runs_dir = runs_dir.resolve()
    uri = store_uri(runs_dir)
    if _is_server(uri):
        raise ConfigError(f"MLFLOW_TRACKING_URI is {_without_password(uri)}: open that page, or unset it")
    if uri.endswith("/mlflow.db") and not (runs_dir / "mlflow.db").exists():
        raise ConfigError(f"no runs recorded in {runs_dir} (mlflow.db is missing): train first, or give --runs")
    _connect(uri)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ConfigError(f"port {port} is taken: give another --port, or open http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--no-serve-artifacts", "--default-artifact-root", (runs_dir / "mlartifacts").as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    try:
        ready = _answers(server, f"http://127.0.0.1:{port}/health")
        if ready and on_ready:
            on_ready(f"MLflow is at http://127.0.0.1:{port} (Ctrl-C ends it)")
        if ready and open_browser:
            webbrowser.open(f"http://127.0.0.1:{port}")
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


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
            **_versions(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "device": _device_name(),
        }
        self._log_json(about, "environment.json")
        self._set_tags({**_git_tags(), **{key: str(value) for key, value in about.items()}})

    def log_data(self, fingerprint: Mapping[str, Any]) -> None:
        """Record which data was used: content hash and counts, as tags and `data.json`."""
        self._log_json(fingerprint, "data.json")
        self._set_tags({f"data.{key}": value for key, value in flatten(without_folders(dict(fingerprint))).items()})

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
        except _failures() as error:
            logger.warning("MLflow did not record %s (%s); the run goes on", what, _first_line(error))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner -> text`, comments left out.

    >>> flatten({"train": {"lr": 0.1, "_desc_": "why"}, "size": [3, 4]})
    {'train.lr': '0.1', 'size': '[3, 4]'}
    """
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = re.sub(r"[^\w.\- ]", "_", f"{prefix}{key}".replace("::", "."))
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif key not in COMMENT_KEYS:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[name] = text[:MAX_VALUE]
    return flat


def without_folders(value: Any) -> Any:
    """The same value, nested or not, with folders of this machine cut from its texts.

    >>> without_folders({"dataset_dir": "/home/ann/scans", "error": "cannot read /home/ann/scans/a.nii.gz"})
    {'dataset_dir': '.../scans', 'error': 'cannot read .../a.nii.gz'}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return value
    for absolute in (PurePosixPath(value), PureWindowsPath(value)):
        if absolute.is_absolute() and "\n" not in value:
            return f".../{absolute.name}"
    for known in (str(Path.cwd()), str(Path.home())):  # first, for these may hold spaces
        value = value.replace(known, "/...") if len(known) > 1 else value
    return FOLDERS.sub(".../", value)


def _connect(uri: str) -> Any:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise ConfigError("MLflow, which records runs, is not installed: pip install 'medseg[train]'") from error
    for noisy in ("alembic", "mlflow.store.db.utils"):  # a page of lines when the store is made
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _failures() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException

    return MlflowException, OSError  # no connection and no disk space are OSErrors


def _is_server(uri: str) -> bool:
    return not uri.startswith("sqlite:")


def _experiment_id(client: Any, name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None)
        except MlflowException:  # another run made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
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


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server answers; False if it ends before."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return True
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which would outlive it."""
    try:
        family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    server.wait()


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _first_line(error: Exception) -> str:
    return str(without_folders(next(iter(str(error).splitlines()), type(error).__name__)[:MAX_VALUE]))


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _git_tags() -> dict[str, str]:
    """Commit of the checkout the run was started in, and whether it had changes; nothing outside a checkout."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changes)).lower()}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
