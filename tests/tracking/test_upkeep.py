import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from medseg import cli
from medseg.errors import ConfigError
from medseg.tracking import import_runs, life, mark_dead_runs, resume_run, start_run
from medseg.tracking.journal import Journal


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, new_store):
    """One store for the module."""
    return new_store(tmp_path_factory.mktemp("project") / "runs")


@pytest.fixture
def run(runs_dir):
    """A run that is ended, so that tests do not see each other's."""
    run = start_run(runs_dir=runs_dir, experiment="unet_liver")
    yield run
    run._watch.stop()
    life.take_sign(run.folder)


def query(runs_dir, text, *values):
    """Rows of the store, read without MLflow."""
    with closing(sqlite3.connect(runs_dir / "mlflow.db")) as store:
        return store.execute(text, values).fetchall()


def status(runs_dir, run_id):
    [(status,)] = query(runs_dir, "SELECT status FROM runs WHERE run_uuid = ?", run_id)
    return status


def stored(runs_dir, run_id):
    """All that the store has of a run but where its artifacts are."""
    tags = dict(query(runs_dir, "SELECT key, value FROM tags WHERE run_uuid = ?", run_id))
    return {
        "run": query(runs_dir, "SELECT name, status, start_time, end_time FROM runs WHERE run_uuid = ?", run_id),
        "params": query(runs_dir, "SELECT key, value FROM params WHERE run_uuid = ? ORDER BY key", run_id),
        "tags": tags,
        "metrics": query(
            runs_dir, "SELECT key, value, timestamp, step FROM metrics WHERE run_uuid = ? ORDER BY key, step", run_id
        ),
        "data": query(
            runs_dir,
            "SELECT name, digest FROM datasets JOIN inputs ON source_id = dataset_uuid WHERE destination_id = ?",
            run_id,
        ),
        "artifacts": {
            path.name: path.read_bytes()
            for path in (runs_dir / "mlartifacts" / run_id / "artifacts").rglob("*")
            if path.is_file()
        },
    }


def forge_sign(folder, **changes):
    """The sign of life of another process."""
    found = json.loads(life.sign(folder).read_text())
    life.sign(folder).write_text(json.dumps(found | changes))


def other_process(code="import time; time.sleep(60)"):
    return subprocess.Popen([sys.executable, "-c", code])


def test_run_of_a_dead_process_becomes_killed(runs_dir, run):
    process = other_process("")
    forge_sign(run.folder, pid=process.pid, process_started=time.time())
    process.wait()
    assert mark_dead_runs(runs_dir) == [run.folder.name]
    assert status(runs_dir, run.run_id) == "KILLED"
    assert mark_dead_runs(runs_dir) == []


def test_run_of_a_process_that_has_ended_but_is_not_waited_for_becomes_killed(runs_dir, run):
    process = other_process()
    forge_sign(run.folder, pid=process.pid, process_started=psutil.Process(process.pid).create_time())
    assert mark_dead_runs(runs_dir) == []
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert mark_dead_runs(runs_dir) == [run.folder.name]
    process.wait()


def test_run_of_a_living_process_stays_running(runs_dir, run):
    assert mark_dead_runs(runs_dir) == []
    assert status(runs_dir, run.run_id) == "RUNNING"


def test_process_number_given_to_another_process_is_no_life(runs_dir, run):
    forge_sign(run.folder, process_started=time.time() - 1000)
    assert mark_dead_runs(runs_dir) == [run.folder.name]


@pytest.mark.parametrize(("age_s", "dead"), [(life.MISSED_S - 60, False), (life.MISSED_S + 60, True)])
def test_run_of_another_machine_is_dead_after_ten_minutes_without_a_sign(runs_dir, run, age_s, dead):
    forge_sign(run.folder, host="elsewhere", beat=time.time() - age_s)
    assert bool(mark_dead_runs(runs_dir)) == dead
    assert status(runs_dir, run.run_id) == ("KILLED" if dead else "RUNNING")


def test_sign_of_life_names_no_machine(run):
    import platform

    text = life.sign(run.folder).read_text()
    assert platform.node() not in text
    assert set(json.loads(text)) == {"host", "pid", "process_started", "beat"}


KILLED = """
import os, signal, sys
from pathlib import Path
from medseg.tracking import runs
runs.start_run(runs_dir=Path(sys.argv[1]), experiment="unet_liver")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_launch_after_a_kill_leaves_no_run_running(tmp_path, new_store):
    new_store(tmp_path)
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == -signal.SIGKILL
    [(killed, before)] = query(tmp_path, "SELECT run_uuid, status FROM runs")
    launched = start_run(runs_dir=tmp_path, experiment="unet_liver")
    assert (before, status(tmp_path, killed)) == ("RUNNING", "KILLED")
    launched.finish("FINISHED")
    assert query(tmp_path, "SELECT 1 FROM runs WHERE status = 'RUNNING'") == []


def test_run_killed_before_its_folder_knew_its_number_is_found_by_its_key(runs_dir, run):
    (run.folder / "run.json").unlink()
    forge_sign(run.folder, process_started=0)
    assert mark_dead_runs(runs_dir) == [run.folder.name]
    assert status(runs_dir, run.run_id) == "KILLED"
    assert json.loads((run.folder / "run.json").read_text())["run_id"] == run.run_id


def test_run_being_written_is_not_resumed(run):
    process = other_process()
    try:
        forge_sign(run.folder, pid=process.pid, process_started=psutil.Process(process.pid).create_time())
        with pytest.raises(ConfigError, match=rf"is being written by process {process.pid}: wait for it, or end it"):
            resume_run(run.folder)
    finally:
        process.kill()
        process.wait()


def test_run_being_written_on_another_machine_is_not_resumed(run, monkeypatch):
    forge_sign(run.folder, host="elsewhere")
    monkeypatch.setattr(life.time, "sleep", lambda _: forge_sign(run.folder, beat=time.time() + 1))
    with pytest.raises(ConfigError, match=r"is being written on another machine: wait for it, or end it there"):
        resume_run(run.folder)


def test_run_left_a_moment_ago_on_another_machine_is_resumed(runs_dir, run, monkeypatch):
    forge_sign(run.folder, host="elsewhere")
    monkeypatch.setattr(life, "WATCH_S", 0.05)
    resume_run(run.folder).finish("FINISHED")
    assert status(runs_dir, run.run_id) == "FINISHED"


def fill(run):
    run.log_recipe({"seed": 0, "train": {"lr": 0.1}}, {"seed": 0})
    run.log_data({"sha256": "ab", "cases": 3})
    run.log_metrics({"loss": 1.0, "dice": 0.25}, step=1)
    run.flush()
    run.log_metrics({"loss": 0.5}, step=2)
    run.log_table([{"case_id": "a", "dice": 0.5}], "cases")
    (run.folder / "pictures").mkdir()
    (run.folder / "pictures" / "worst.png").write_bytes(b"\x89PNG\x00\xff")
    run.log_file(run.folder / "pictures" / "worst.png", "pictures")


def test_imported_run_is_the_same_run(runs_dir, run, tmp_path, new_store):
    new_store(tmp_path / "other")
    fill(run)
    run.finish("FAILED", error="case 'a' is gone")
    shutil.copytree(run.folder, tmp_path / "brought" / run.folder.name)
    [imported] = import_runs(tmp_path / "brought", runs_dir=tmp_path / "other")
    assert imported == (run.folder.name, imported.run_id, "imported")
    assert stored(tmp_path / "other", imported.run_id) == stored(runs_dir, run.run_id)
    assert len(stored(runs_dir, run.run_id)["metrics"]) == 3
    assert "worst.png" in stored(runs_dir, run.run_id)["artifacts"]


def test_imported_twice_or_from_a_copy_is_imported_once(runs_dir, run, tmp_path, new_store):
    new_store(tmp_path / "other")
    fill(run)
    run.finish("FINISHED")
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(run.folder, first)
    shutil.copytree(run.folder, second)
    other = tmp_path / "other"
    assert [import_runs(folder, runs_dir=other)[0].what for folder in (first, first)] == ["imported", "complete"]
    [(run_id,)] = query(other, "SELECT run_uuid FROM runs")
    before = stored(other, run_id)
    import_runs(second, runs_dir=other)
    assert query(other, "SELECT run_uuid FROM runs") == [(run_id,)]
    assert stored(other, run_id) == before
    assert import_runs(run.folder, runs_dir=runs_dir)[0].what == "complete"


def test_run_killed_elsewhere_is_imported_as_killed(runs_dir, run, tmp_path):
    fill(run)
    forge_sign(run.folder, process_started=0)
    [imported] = import_runs(run.folder, runs_dir=runs_dir)
    assert imported == (run.folder.name, run.run_id, "completed")
    assert status(runs_dir, run.run_id) == "KILLED"


def test_run_still_written_is_left_alone(runs_dir, run):
    assert import_runs(run.folder, runs_dir=runs_dir) == [(run.folder.name, None, "running")]
    assert status(runs_dir, run.run_id) == "RUNNING"


def test_line_cut_off_by_a_kill_is_passed_over(runs_dir, run):
    fill(run)
    run._watch.stop()
    with Journal(run.folder).path.open("ab") as file:
        file.write(b'{"metrics": {"loss": 0.')
    forge_sign(run.folder, process_started=0)
    assert mark_dead_runs(runs_dir) == [run.folder.name]
    assert len(stored(runs_dir, run.run_id)["metrics"]) == 3
    for line in Journal(run.folder).path.read_bytes().splitlines():
        json.loads(line)


def test_folds_are_children_here_and_after_an_import(runs_dir, run, tmp_path, new_store):
    new_store(tmp_path / "other")
    fold = start_run(runs_dir=runs_dir, experiment="unet_liver", name="fold-0", parent=run.run_id)
    assert stored(runs_dir, fold.run_id)["tags"]["mlflow.parentRunId"] == run.run_id
    fold.finish("FINISHED")
    run.finish("FINISHED")
    for folder in (fold.folder, run.folder):
        shutil.copytree(folder, tmp_path / "brought" / folder.name)
    imported = {found.name: found.run_id for found in import_runs(tmp_path / "brought", runs_dir=tmp_path / "other")}
    tags = stored(tmp_path / "other", imported[fold.folder.name])["tags"]
    assert tags["mlflow.parentRunId"] == imported[run.folder.name]


def test_unknown_parent_is_refused(runs_dir):
    with pytest.raises(ConfigError, match="MLflow has no run 0123: give the run id of the cross-validation"):
        start_run(runs_dir=runs_dir, experiment="unet_liver", parent="0123")


def test_command_says_what_became_of_each_run(runs_dir, run, tmp_path, new_store):
    run.finish("FINISHED")
    shutil.copytree(run.folder, tmp_path / "brought" / run.folder.name)
    command = ["runs", "import", str(tmp_path / "brought"), "--runs", str(new_store(tmp_path / "other"))]
    first, second = (CliRunner().invoke(cli.app, command) for _ in range(2))
    [(run_id,)] = query(tmp_path / "other", "SELECT run_uuid FROM runs")
    assert first.stdout == f"{run.folder.name}: imported (run id {run_id})\n"
    assert second.stdout == f"{run.folder.name}: was there (run id {run_id})\n"


def test_folder_without_runs_is_not_imported(tmp_path):
    with pytest.raises(ConfigError, match=r"no run in .*\(run.json is missing\)"):
        import_runs(tmp_path, runs_dir=tmp_path)


def test_store_moved_with_its_runs_keeps_artifacts_with_it(tmp_path, new_store):
    new_store(tmp_path / "before")
    run = start_run(runs_dir=tmp_path / "before", experiment="unet_liver")
    run.log_table([{"a": 1}], "cases")
    run.finish("KILLED")
    (tmp_path / "before").rename(tmp_path / "after")
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    _artifact_repos_cache.clear()  # MLflow's, of this process; a resume is another
    again = resume_run(tmp_path / "after" / run.folder.name)
    again.log_table([{"a": 2}], "more")
    again.finish("FINISHED")
    assert again.run_id == run.run_id
    assert set(stored(tmp_path / "after", run.run_id)["artifacts"]) == {"cases.csv", "more.csv"}
    assert not (tmp_path / "before").exists()


def test_full_disk_loses_no_record_and_leaves_whole_lines(runs_dir, run, monkeypatch, caplog):
    run._watch.stop()
    real = Path.open

    def full(self, mode="r", *arguments, **options):
        if "a" in mode:
            raise OSError(28, "No space left on device")
        return real(self, mode, *arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", full)
        run.log_metrics({"loss": 1.0}, step=0)
        run.log_metrics({"dice": 0.0}, step=0)
        run.flush()
    assert caplog.text.count("cannot be written ([Errno 28] No space left on device); the run goes on") == 1
    run.log_metrics({"loss": 0.5}, step=1)
    run.finish("FINISHED")
    kept = [row[:2] for row in stored(runs_dir, run.run_id)["metrics"]]
    assert kept == [("dice", 0.0), ("loss", 1.0), ("loss", 0.5)]


def test_the_sign_is_judged_as_predict_judges_its_processes(runs_dir, run, monkeypatch):
    asked = []
    monkeypatch.setattr(life, "runs", asked.append)  # None: no such process
    assert mark_dead_runs(runs_dir) == [run.folder.name]
    assert {process["pid"] for process in asked} == {os.getpid()}
