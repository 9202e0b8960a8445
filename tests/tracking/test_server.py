import http.server
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from medseg.errors import ConfigError
from medseg.tracking import import_runs, start_run
from medseg.tracking.journal import Journal
from medseg.tracking.store import ENVIRONMENT


class Server(http.server.ThreadingHTTPServer):
    """As much of a tracking server as starting a run takes; then it can fall silent."""

    daemon_threads = True
    silent = False
    asked = 0


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        if self.server.silent:
            time.sleep(60)
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        run = {"info": {"run_id": "r1", "experiment_id": "1", "status": "RUNNING"}, "data": {}}
        experiment = {"experiment_id": "1", "name": "unet_liver", "lifecycle_stage": "active"}
        known = {"get-by-name": {"experiment": experiment}, "create": {"run": run}, "search": {"experiments": []}}
        content = json.dumps(known.get(name, {})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with Server(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


@contextmanager
def seconds(most):
    started = time.monotonic()
    yield
    assert time.monotonic() - started < most


def test_closed_port_is_refused_within_ten_seconds(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:secret@127.0.0.1:{port}")
    with seconds(10), pytest.raises(ConfigError, match=rf"store http://127.0.0.1:{port} cannot be used") as caught:
        start_run(runs_dir=tmp_path, experiment="unet_liver")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_server_that_accepts_and_says_nothing_is_refused_within_ten_seconds(tmp_path, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with seconds(10), pytest.raises(ConfigError, match=r"cannot be used \((no answer within 6 s|timed out)\)"):
            start_run(runs_dir=tmp_path, experiment="unet_liver")


@pytest.mark.slow
def test_server_that_falls_silent_costs_a_training_one_wait(tmp_path, server, monkeypatch, caplog):
    run = start_run(runs_dir=tmp_path / "runs", experiment="unet_liver")
    server.silent, server.asked = True, 0
    with seconds(10):
        for step in range(50):
            run.log_metrics({"loss": 1 / (step + 1)}, step=step)
            run.flush()
        run.log_table([{"a": 1}], "cases")
    assert server.asked == 1
    assert caplog.text.count("the run goes on") == 1
    with seconds(10):
        run.finish("FINISHED")
    assert Journal(run.folder).status() == "FINISHED"

    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # later, to another store
    [imported] = import_runs(run.folder, runs_dir=tmp_path / "runs")
    assert imported.what == "imported"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(tmp_path / 'runs' / 'mlflow.db').as_posix()}")
    assert len(client.get_metric_history(imported.run_id, "loss")) == 50
    assert client.get_run(imported.run_id).info.status == "FINISHED"
