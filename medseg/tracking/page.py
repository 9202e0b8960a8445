"""MLflow's own pages over the recorded runs, on this machine alone."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from medseg.errors import ConfigError
from medseg.tracking.store import ARTIFACTS, is_server, prepare, store_uri, without_password

SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}  # fewer processes
FIRST_PAGE = "#/experiments?workflowType=machine_learning"  # MLflow would start with its pages for chat models


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
    if is_server(uri):
        raise ConfigError(f"MLFLOW_TRACKING_URI is {without_password(uri)}: open that page, or unset it")
    if "MLFLOW_TRACKING_URI" not in os.environ and not (runs_dir / "mlflow.db").exists():
        raise ConfigError(f"no runs recorded in {runs_dir} (mlflow.db is missing): train first, or give --runs")
    prepare()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ConfigError(f"port {port} is taken: give another --port, or open http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--registry-store-uri", uri]
    command += ["--no-serve-artifacts", "--default-artifact-root", (runs_dir / ARTIFACTS).as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    page = f"http://127.0.0.1:{port}/{FIRST_PAGE}"
    server = subprocess.Popen(command, env=os.environ | SERVER_ENVIRONMENT)
    try:
        ready = _answers(server, f"http://127.0.0.1:{port}/health")
        if ready and on_ready:
            on_ready(f"MLflow is at {page} (Ctrl-C ends it)")
        if ready and open_browser:
            webbrowser.open(page)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server answers; False if it ends before."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see this machine's pages
    while server.poll() is None:
        try:
            with direct.open(address, timeout=1):
                return True
        except OSError:  # refused, reset or timed out: still starting
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
