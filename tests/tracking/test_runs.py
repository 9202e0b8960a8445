import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path

import pytest

from medseg.errors import ConfigError
from medseg.tracking import append_to, mark_dead_runs, resume_run, start_run


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, new_store):
    """One store for the module."""
    return new_store(tmp_path_factory.mktemp("project") / "runs")


@pytest.fixture
def run(runs_dir):
    return start_run(runs_dir=runs_dir, experiment="unet_liver")


def query(runs_dir, text, *values):
    """Rows of the store, read without MLflow."""
    with closing(sqlite3.connect(runs_dir / "mlflow.db")) as store:
        return store.execute(text, values).fetchall()


def tags(runs_dir, run):
    return dict(query(runs_dir, "SELECT key, value FROM tags WHERE run_uuid = ?", run.run_id))


def params(runs_dir, run):
    return dict(query(runs_dir, "SELECT key, value FROM params WHERE run_uuid = ?", run.run_id))


def metrics(runs_dir, run):
    return query(runs_dir, "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step", run.run_id)


def artifact(runs_dir, run, name):
    return runs_dir / "mlartifacts" / run.run_id / "artifacts" / name


def git(*arguments):
    person = ["-c", "user.name=Ann", "-c", "user.email=ann@secret.example"]
    done = subprocess.run(["git", *person, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with a remote, as the current folder."""
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    git("remote", "add", "origin", "https://secret.example/clinic.git")
    Path("recipe.json").write_text("{}")
    git("add", "recipe.json")
    git("commit", "--quiet", "-m", "Start")
    return tmp_path


def test_each_launch_is_a_run_and_a_folder_of_its_own(runs_dir, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102-030405")
    first, second = (start_run(runs_dir=runs_dir, experiment="unet_liver", name="liver: try 1") for _ in range(2))
    assert first.run_id != second.run_id
    assert first.folder == runs_dir / "20260102-030405-liver-try-1"
    assert second.folder == runs_dir / "20260102-030405-liver-try-1-2"


def test_folder_and_mlflow_name_each_other(runs_dir, run):
    about = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert about | {"started": ""} == {
        "run_id": run.run_id,
        "experiment": "unet_liver",
        "name": run.folder.name,
        "started": "",
    }
    [(name, status)] = query(runs_dir, "SELECT name, status FROM runs WHERE run_uuid = ?", run.run_id)
    assert (name, status) == (run.folder.name, "RUNNING")


def test_recipe_is_kept_whole_and_as_parameters(runs_dir, run):
    recipe = {"_about_": "a card", "train": {"lr": 0.01}, "dataset_dir": "/home/ann/scans"}
    run.log_recipe(recipe, {"train::lr": 0.01})
    assert params(runs_dir, run) == {"train.lr": "0.01", "dataset_dir": ".../scans"}
    kept = json.loads(artifact(runs_dir, run, "recipe.json").read_text())
    assert kept == recipe | {"dataset_dir": ".../scans"}
    assert json.loads(artifact(runs_dir, run, "overrides.json").read_text()) == {"train::lr": 0.01}
    assert tags(runs_dir, run)["overrides"] == "train.lr=0.01"


def test_any_number_of_parameters_is_taken(runs_dir, run):
    run.log_params({f"key_{number}": number for number in range(250)})
    assert len(params(runs_dir, run)) == 250


def test_metrics_wait_for_flush_and_keep_their_steps(runs_dir, run):
    run.log_metrics({"validation/dice_liver": 0.5, "train/loss": 2}, step=1)
    run.log_metrics({"validation/dice_liver": 0.75}, step=2)
    assert metrics(runs_dir, run) == []
    run.flush()
    expected = [("train/loss", 1, 2.0), ("validation/dice_liver", 1, 0.5), ("validation/dice_liver", 2, 0.75)]
    assert metrics(runs_dir, run) == expected
    run.flush()
    assert metrics(runs_dir, run) == expected


def test_figures_that_are_no_numbers_are_left_out(runs_dir, run):
    run.log_metrics({"a": float("nan"), "b": float("inf"), "c": 1.0}, step=0)
    run.flush()
    assert metrics(runs_dir, run) == [("c", 0, 1.0)]


def test_more_metrics_than_one_call_takes_are_sent(runs_dir, run):
    for step in range(1100):
        run.log_metrics({"loss": step}, step=step)
    run.flush()
    assert [step for _, step, _ in metrics(runs_dir, run)] == list(range(1100))


def test_table_has_every_column(runs_dir, run):
    run.log_table([{"case_id": "a", "dice": 0.5}, {"case_id": "b", "message": "cannot read /home/ann/b.nii"}], "cases")
    text = artifact(runs_dir, run, "cases.csv").read_text()
    assert text == "case_id,dice,message\na,0.5,\nb,,cannot read .../b.nii\n"


def test_file_is_kept_as_it_is(runs_dir, run, tmp_path):
    (tmp_path / "worst.png").write_bytes(b"\x89PNG\x00\xff")
    run.log_file(tmp_path / "worst.png", "pictures")
    assert artifact(runs_dir, run, "pictures/worst.png").read_bytes() == b"\x89PNG\x00\xff"


def test_data_are_named_by_their_hash(runs_dir, run):
    fingerprint = {"sha256": "0123456789abcdef" * 4, "cases": 18}
    run.log_data(fingerprint)
    assert tags(runs_dir, run) | {"data.sha256": "0123456789abcdef" * 4, "data.cases": "18"} == tags(runs_dir, run)
    assert json.loads(artifact(runs_dir, run, "data.json").read_text()) == fingerprint
    assert ("0123456789abcdef" * 2 + "0123",) in query(runs_dir, "SELECT digest FROM datasets")


def test_split_and_volumes_are_recorded_with_the_data(runs_dir, run):
    split = {"training": ["a", "b"], "validation": ["c"]}
    volumes = [{"case_id": "a", "liver_ml": 1000.0, "tumor_ml": 3.0}, {"case_id": "c", "liver_ml": 2000.0}]
    run.log_data({"sha256": "cd"}, split=split, volumes=volumes)
    assert json.loads(artifact(runs_dir, run, "split.json").read_text()) == split
    assert artifact(runs_dir, run, "region_volumes.csv").read_text().splitlines()[1:] == ["a,1000.0,3.0", "c,2000.0,"]
    [data] = run._outbox.client.get_run(run.run_id).inputs.dataset_inputs
    profile = json.loads(data.dataset.profile)
    assert profile["split"] == {"training": 2, "validation": 1}
    assert profile["mean_volume_ml"] == {"liver": 1500.0, "tumor": 3.0}
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]


def test_history_holds_every_figure_in_order(run):
    for step, value in ((2, 0.5), (1, 1.0), (2, 0.25)):
        run.log_metrics({"train_loss": value}, step=step)
    run.log_metrics({"validation_dice": 0.75}, step=2)
    assert run.history() == {"train_loss": [(1, 1.0), (2, 0.25)], "validation_dice": [(2, 0.75)]}


def test_what_mlflow_refuses_is_named_and_the_rest_is_taken(runs_dir, run, caplog):
    run._outbox.put({"metrics": {"good": 1.0, "bad?!": 2.0}, "step": 0, "time": 1})
    run.log_metrics({"after": 3.0}, step=0)
    run.flush()
    assert [name for name, _, _ in metrics(runs_dir, run)] == ["after", "good"]
    assert "MLflow refuses metrics bad?!" in caplog.text


def test_file_that_is_gone_stops_nothing(runs_dir, run, caplog, tmp_path):
    run.log_file(run.folder / "pictures" / "worst.png")
    run.log_file(tmp_path / "absent.png")
    run.log_metrics({"loss": 1.0}, step=0)
    run.flush()
    assert metrics(runs_dir, run) == [("loss", 0, 1.0)]
    assert "worst.png is gone from the run's folder" in caplog.text
    assert "absent.png cannot be kept in the run's folder" in caplog.text


def test_figures_are_sent_within_about_a_minute_without_a_flush(runs_dir, run, monkeypatch):
    run._outbox.tried_at -= 61
    run.log_metrics({"loss": 1.0}, step=0)
    assert metrics(runs_dir, run) == [("loss", 0, 1.0)]


def test_environment_is_recorded(runs_dir, run):
    run.log_environment()
    about = json.loads(artifact(runs_dir, run, "environment.json").read_text())
    assert about["python"] == ".".join(map(str, sys.version_info[:3]))
    assert about["cores"] > 0
    assert about["memory_gb"] > 0
    import torch

    assert tags(runs_dir, run)["torch"] == about["torch"] == torch.__version__


def test_commit_and_changes_are_recorded(runs_dir, checkout):
    run = start_run(runs_dir=runs_dir, experiment="git")
    run.log_environment()
    found = tags(runs_dir, run)
    assert found["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert found["mlflow.source.git.dirty"] == "false"
    (checkout / "recipe.json").write_text("{ }")
    run.log_environment()
    assert tags(runs_dir, run)["mlflow.source.git.dirty"] == "true"


def test_no_commit_is_recorded_outside_a_checkout(runs_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start_run(runs_dir=runs_dir, experiment="git")
    run.log_environment()
    assert not any("git" in key for key in tags(runs_dir, run))


def test_nothing_private_gets_into_the_store(tmp_path, checkout, monkeypatch, new_store):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "ann_secret")
    runs_dir = new_store(tmp_path / "runs")
    run = start_run(runs_dir=runs_dir, experiment="unet_liver")
    run.log_recipe({"dataset_dir": str(tmp_path / "scans")}, {"dataset_dir": str(tmp_path / "scans")})
    run.log_environment()
    run.log_data({"sha256": "ab", "cases": 3}, split={"training": ["a"]}, volumes=[{"case_id": "a", "liver_ml": 3.5}])
    run.log_metrics({"loss": 0.5}, step=0)
    run.log_table([{"case_id": "a", "message": f"cannot read {tmp_path / 'scans' / 'a.nii.gz'}"}], "cases")
    (tmp_path / "error.txt").write_text("ValueError: bad")
    run.log_file(tmp_path / "error.txt")
    (run.folder / "bundle" / "configs").mkdir(parents=True)
    card = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    (run.folder / "bundle" / "configs" / "recipe.json").write_text(json.dumps(card))
    run.log_model(run.folder / "bundle", register_as="liver", alias="best")
    run.finish("FAILED", error=f"cannot read {tmp_path / 'scans' / 'a.nii.gz'}")
    run = resume_run(run.folder)
    run.log_params({"dataset_dir": str(tmp_path / "elsewhere" / "scans2")})
    run.finish("FAILED", error=f"cannot read {tmp_path / 'scans' / 'a.nii.gz'}")
    with closing(sqlite3.connect(runs_dir / "mlflow.db")) as store:
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        # MLflow itself needs to know where its artifacts are
        own = {"artifact_uri", "artifact_location", "default_artifact_root", "storage_location"}
        cells = []
        for table in tables:
            rows = store.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in rows.description]
            cells += [str(cell) for row in rows for name, cell in zip(names, row, strict=True) if name not in own]
    for folder in (runs_dir / "mlartifacts", run.folder):
        cells += [f"{file.name}: {file.read_text()}" for file in folder.rglob("*") if file.is_file()]
    secrets = ("ann_secret", str(tmp_path), str(Path.home()) + os.sep, "secret.example", "Ann", platform.node())
    assert [cell for cell in cells if any(secret in cell for secret in secrets)] == []
    for recorded in ("a.nii.gz", "scans2", "liver_ml", "loader_module", "ValueError: bad"):  # so all was looked through
        assert any(recorded in cell for cell in cells)


def test_end_of_a_run_sends_what_is_left(runs_dir, run):
    run.log_metrics({"loss": 1.0}, step=3)
    run.finish("FAILED", error="case 'a': cannot read /home/ann/a.nii.gz")
    assert metrics(runs_dir, run) == [("loss", 3, 1.0)]
    assert tags(runs_dir, run)["error"] == "case 'a': cannot read .../a.nii.gz"
    [(status, ended)] = query(runs_dir, "SELECT status, end_time FROM runs WHERE run_uuid = ?", run.run_id)
    assert status == "FAILED"
    assert ended > 0


def test_traceback_of_a_failure_is_kept_without_folders(runs_dir, run, tmp_path):
    (tmp_path / "Ann Lee").mkdir()
    script = tmp_path / "Ann Lee" / "train.py"
    script.write_text(f"open({str(tmp_path / 'scans' / 'a.nii.gz')!r})")
    with pytest.raises(FileNotFoundError) as raised:
        exec(compile(script.read_text(), str(script), "exec"))
    run.finish("FAILED", error="no a.nii.gz", traceback="".join(traceback.format_exception(raised.value)))
    text = artifact(runs_dir, run, "traceback.txt").read_text()
    assert 'File "train.py", line 1' in text
    assert "FileNotFoundError" in text
    assert "Ann" not in text
    assert str(tmp_path) not in text


def test_store_that_fails_stops_no_training_and_loses_nothing(runs_dir, run, monkeypatch, caplog):
    with monkeypatch.context() as broken:
        for name in ("log_batch", "log_artifact", "log_inputs", "set_terminated"):
            broken.setattr(run._outbox.client, name, fail)
        run.log_metrics({"loss": 1.0}, step=0)
        run.flush()
        run.log_recipe({"seed": 0}, {})
        run.log_table([{"a": 1}], "cases")
        run.log_environment()
        run.log_data({"sha256": "ab"})
        run.finish("FAILED", error="none")
    assert caplog.text.count("MLflow does not answer (No space left on device); the run goes on") == 1
    assert metrics(runs_dir, run) == []
    mark_dead_runs(runs_dir)  # as the next launch does
    assert metrics(runs_dir, run) == [("loss", 0, 1.0)]
    assert params(runs_dir, run) == {"seed": "0"}
    assert tags(runs_dir, run)["error"] == "none"
    assert artifact(runs_dir, run, "cases.csv").read_text() == "a\n1\n"
    assert query(runs_dir, "SELECT status FROM runs WHERE run_uuid = ?", run.run_id) == [("FAILED",)]


def fail(*_arguments, **_options):
    raise OSError("No space left on device")


def test_figures_do_not_wait_for_files_that_are_not_taken(runs_dir, run, monkeypatch, caplog):
    with monkeypatch.context() as broken:
        broken.setattr(run._outbox.client, "log_artifact", lambda *_: 1 / 0)  # not even an error that MLflow knows
        run.log_table([{"a": 1}], "first")
        run.log_table([{"a": 2}], "second")
        run.log_metrics({"loss": 1.0}, step=0)
        run.finish("FINISHED")
    assert metrics(runs_dir, run) == [("loss", 0, 1.0)]
    assert query(runs_dir, "SELECT status FROM runs WHERE run_uuid = ?", run.run_id) == [("FINISHED",)]
    assert caplog.text.count("the run goes on") == 1
    assert not artifact(runs_dir, run, "first.csv").exists()
    mark_dead_runs(runs_dir)  # as the next launch does
    assert artifact(runs_dir, run, "first.csv").read_text() == "a\n1\n"
    assert artifact(runs_dir, run, "second.csv").read_text() == "a\n2\n"


def test_server_has_longer_for_a_large_file_only(run, monkeypatch):
    given = []
    monkeypatch.setattr(
        run._outbox.client, "log_artifact", lambda *_: given.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    )
    (run.folder / "model.pt").write_bytes(bytes(30_000_000))
    run.log_file(run.folder / "model.pt")
    run.log_table([{"a": 1}], "cases")
    assert given == ["35", "5"]
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"


def test_resumed_run_is_the_same_and_running_without_its_error(runs_dir, run):
    run.log_metrics({"loss": 1.0}, step=0)
    run.finish("FAILED", error="case 'a' is gone")
    again = resume_run(run.folder)
    assert again.run_id == run.run_id
    assert query(runs_dir, "SELECT status FROM runs WHERE run_uuid = ?", run.run_id) == [("RUNNING",)]
    assert "error" not in tags(runs_dir, run)
    again.log_metrics({"loss": 1.0}, step=0)  # done again after the last checkpoint: once is enough
    again.log_metrics({"loss": 0.5}, step=1)
    again.finish("FINISHED")
    assert metrics(runs_dir, run) == [("loss", 0, 1.0), ("loss", 1, 0.5)]
    assert query(runs_dir, "SELECT status FROM runs WHERE run_uuid = ?", run.run_id) == [("FINISHED",)]


def test_run_that_cannot_be_resumed_stays_what_it_was(runs_dir, run, monkeypatch):
    run.finish("FAILED", error="case 'a' is gone")
    ended = query(runs_dir, "SELECT status, end_time FROM runs WHERE run_uuid = ?", run.run_id)
    with monkeypatch.context() as broken:
        broken.setattr("mlflow.MlflowClient.update_run", fail)
        with pytest.raises(ConfigError, match="No space left on device"):
            resume_run(run.folder)
    mark_dead_runs(runs_dir)  # as the next launch does
    assert query(runs_dir, "SELECT status, end_time FROM runs WHERE run_uuid = ?", run.run_id) == ended
    assert tags(runs_dir, run)["error"] == "case 'a' is gone"
    assert not (run.folder / "tracking" / "open.json").exists()


def test_what_is_appended_to_a_run_leaves_its_end_and_its_error(runs_dir, run):
    run.finish("FAILED", error="case 'a' is gone")
    ended = query(runs_dir, "SELECT status, end_time FROM runs WHERE run_uuid = ?", run.run_id)
    with append_to(run.folder) as again:
        again.log_metrics({"held_out_dice": 0.5}, step=0)
        again.flush()
        assert query(runs_dir, "SELECT status, end_time FROM runs WHERE run_uuid = ?", run.run_id) == ended
    assert metrics(runs_dir, run) == [("held_out_dice", 0, 0.5)]
    assert query(runs_dir, "SELECT status, end_time FROM runs WHERE run_uuid = ?", run.run_id) == ended
    assert tags(runs_dir, run)["error"] == "case 'a' is gone"
    assert not (run.folder / "tracking" / "open.json").exists()


def test_setting_changed_at_a_resume_is_a_tag(runs_dir, run):
    run.log_params({"max_epochs": 5, "seed": 0})
    run.finish("KILLED")
    again = resume_run(run.folder)
    again.log_params({"max_epochs": 9, "seed": 0})
    assert params(runs_dir, run) == {"max_epochs": "5", "seed": "0"}
    assert {key: value for key, value in tags(runs_dir, run).items() if "resumed" in key} == {"resumed.max_epochs": "9"}


def test_run_moved_to_another_store_is_made_again_from_its_folder(runs_dir, run, tmp_path, new_store):
    new_store(tmp_path / "elsewhere")
    run.log_recipe({"seed": 0}, {})
    run.log_metrics({"loss": 1.0}, step=3)
    run.finish("KILLED")
    moved = tmp_path / "elsewhere" / "liver"
    shutil.copytree(run.folder, moved)
    again = resume_run(moved)
    again.finish("FINISHED")
    assert again.run_id != run.run_id
    assert json.loads((moved / "run.json").read_text())["run_id"] == again.run_id
    assert metrics(moved.parent, again) == [("loss", 3, 1.0)]
    assert params(moved.parent, again) == {"seed": "0"}
    assert artifact(moved.parent, again, "recipe.json").read_text() == '{\n  "seed": 0\n}\n'


def test_folder_without_a_run_is_not_resumed(tmp_path):
    with pytest.raises(ConfigError, match=r"no run in .*\(run.json is missing\): give the folder of a run"):
        resume_run(tmp_path)


def test_tags_given_win(runs_dir):
    run = start_run(runs_dir=runs_dir, experiment="unet_liver", tags={"mlflow.source.name": "card.json", "fold": "2"})
    found = tags(runs_dir, run)
    assert (found["mlflow.source.name"], found["fold"], found["mlflow.user"]) == ("card.json", "2", "")


def test_experiment_deleted_in_the_pages_comes_back(runs_dir):
    run = start_run(runs_dir=runs_dir, experiment="deleted")
    [(number,)] = query(runs_dir, "SELECT experiment_id FROM runs WHERE run_uuid = ?", run.run_id)
    run._outbox.client.delete_experiment(str(number))
    again = start_run(runs_dir=runs_dir, experiment="deleted")
    assert query(runs_dir, "SELECT experiment_id FROM runs WHERE run_uuid = ?", again.run_id) == [(number,)]


def test_unreachable_server_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"store http://127.0.0.1:9 cannot be used .* unset it") as caught:
        start_run(runs_dir=tmp_path, experiment="unet_liver")
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 30
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_store_that_is_none_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match=r"mlflow.db cannot be used .*not a database.* Check MLFLOW_TRACKING_URI"):
        start_run(runs_dir=tmp_path, experiment="unet_liver")


KILLED_WHILE_MAKING = """
import os, signal, sys
from pathlib import Path
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from medseg.tracking import start_run
make = SqlAlchemyStore.__init__
SqlAlchemyStore.__init__ = lambda *arguments: (make(*arguments), os.kill(os.getpid(), signal.SIGKILL))
start_run(runs_dir=Path(sys.argv[1]), experiment="unet_liver")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_store_whose_making_was_killed_is_made_again(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED_WHILE_MAKING, str(tmp_path)]).returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    start_run(runs_dir=tmp_path, experiment="unet_liver").finish("FINISHED")
    assert query(tmp_path, "SELECT status FROM runs") == [("FINISHED",)]
    assert [path.name for path in tmp_path.iterdir() if "mlflow.db" in path.name] == ["mlflow.db"]


def test_store_given_by_the_environment_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{(tmp_path / 'other.db').as_posix()}")
    run = start_run(runs_dir=tmp_path / "runs", experiment="unet_liver")
    with closing(sqlite3.connect(tmp_path / "other.db")) as store:
        assert store.execute("SELECT run_uuid FROM runs").fetchall() == [(run.run_id,)]
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_missing_mlflow_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'medseg\[train\]'"):
        start_run(runs_dir=tmp_path, experiment="unet_liver")


NO_NETWORK = """
import socket, sys, time
from pathlib import Path
asked = []
def refuse(*arguments, **options):
    asked.append(arguments)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.socket.connect = refuse
import mlflow  # before medseg can set anything, as MONAI does
from medseg.tracking import start_run
run = start_run(runs_dir=Path(sys.argv[1]), experiment="unet_liver")
run.log_recipe({"seed": 0}, {})
run.log_environment()
run.log_data({"sha256": "ab"})
run.finish("FINISHED")
time.sleep(1)
sys.exit(f"asked for {asked}" if asked else 0)
"""


@pytest.mark.slow
def test_recording_sends_nothing(tmp_path):
    testing = ("PYTEST_CURRENT_TEST", "CI", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")  # any turns telemetry off
    environment = {key: value for key, value in os.environ.items() if key not in testing}
    command = [sys.executable, "-c", NO_NETWORK, str(tmp_path / "runs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


START = """
import sys
from pathlib import Path
from medseg.tracking import start_run
run = start_run(runs_dir=Path(sys.argv[1]), experiment="unet_liver")
for step in range(20):
    run.log_metrics({"loss": step}, step=step)
    run.flush()
run.finish("FINISHED")
"""


@pytest.mark.slow
def test_trainings_that_start_together_share_a_new_store(tmp_path):
    command = [sys.executable, "-c", START, str(tmp_path)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    assert query(tmp_path, "SELECT COUNT(*) FROM runs WHERE status = 'FINISHED'") == [(3,)]
    assert query(tmp_path, "SELECT COUNT(*) FROM metrics") == [(60,)]
