import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from medseg.errors import ConfigError
from medseg.tracking import serve_ui, start_run


def test_folder_without_runs_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"mlflow.db is missing.* train first, or give --runs"):
        serve_ui(tmp_path)


def test_server_elsewhere_is_not_started_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@tracking.example:5000")
    with pytest.raises(ConfigError, match=r"is http://tracking.example:5000: open that page, or unset it"):
        serve_ui(tmp_path)


def test_taken_port_is_named(tmp_path):
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is taken: give another --port"):
            serve_ui(tmp_path, port=port)


def answer(address, host=None):
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


@pytest.mark.slow
def test_page_shows_the_runs_on_this_machine_only_and_ends_whole(tmp_path, new_store):
    run = start_run(runs_dir=new_store(tmp_path / "runs"), experiment="unet_liver")
    run.log_metrics({"dice": 0.5}, step=1)
    run.log_table([{"case_id": "a"}], "cases")
    run.finish("FINISHED")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "medseg.cli", "ui", "--runs", "runs", "--port", str(port), "--no-browser"]
    page = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        line = next(line for line in page.stderr if line.startswith("MLflow is at"))
        address = f"http://127.0.0.1:{port}"
        assert address in line
        status, text = answer(f"{address}/ajax-api/2.0/mlflow/runs/get?run_id={run.run_id}")
        assert status == 200
        assert '"dice"' in text
        status, text = answer(f"{address}/get-artifact?path=cases.csv&run_uuid={run.run_id}")
        assert (status, text) == (200, "case_id\na\n")
        assert answer(address, host="attacker.example")[0] == 403
        elsewhere = next((a[4][0] for a in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)), "127.0.0.1")
        if not elsewhere.startswith("127."):
            with socket.socket() as probe:
                assert probe.connect_ex((elsewhere, port)) != 0
    finally:
        page.terminate()
        page.wait(timeout=60)
        page.stderr.close()
    time.sleep(0.5)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
