"""Trainings that end too soon, and go on elsewhere."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from medseg.data import find_cases
from medseg.errors import ConfigError, DataError
from medseg.reading import read_label
from medseg.writing import write_nifti
from workflows.checkpoints import newest_checkpoint
from workflows.failure import failure_line
from workflows.resuming import check_data, check_recipe, describe_data, record, run_folder
from workflows.training import FollowTraining

CHECKOUT = Path(__file__).parents[2]
EPOCHS = 4


def mlflow_run(folder: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    return client, client.get_run(json.loads((folder / "run.json").read_text())["run_id"])


def status(folder: Path) -> str:
    return str(mlflow_run(folder)[1].info.status)


def figures(folder: Path) -> dict[tuple[str, int], float]:
    """Every figure of a run but those of the clock and the machine."""
    client, run = mlflow_run(folder)
    return {
        (name, point.step): point.value
        for name in run.data.metrics
        if name.startswith(("train_loss", "learning_rate", "validation_", "held_out_", "best_"))
        for point in client.get_metric_history(run.info.run_id, name)
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights after the last epoch, and the best ones."""
    best = torch.load(folder / "bundle" / "models" / "model.pt", weights_only=True)
    newest: dict[str, torch.Tensor] = newest_checkpoint(folder)["network"]
    return newest | {f"best {name}": weight for name, weight in best.items()}


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def train_into(phantom: Path, tiny_overlay: Path, new_store: Callable[[Path], Path]) -> Callable[[Path], None]:
    """Trains into a runs folder."""
    from monai.bundle import run

    def train(runs: Path) -> None:
        files = ["configs/unet_liver.json", str(tiny_overlay)]
        settings = {"dataset_dir": str(phantom), "output_dir": str(runs), "max_epochs": EPOCHS, "device": "cpu"}
        new_store(runs)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(CHECKOUT)
            run("training", config_file=files, logging_file=False, **settings)

    return train


@pytest.fixture(scope="module")
def whole(train_into: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training left alone."""
    runs = tmp_path_factory.mktemp("whole")
    train_into(runs)
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    return folder


@pytest.fixture(scope="module")
def stopped_runs(train_into: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs folder of the same training, which has failed in its third epoch: to copy."""
    finish_epoch = FollowTraining._finish_epoch

    def fail(self: FollowTraining, engine: Any) -> None:
        if engine.state.epoch == 3:
            raise OSError(errno.EIO, "the disk of the scans is gone")
        finish_epoch(self, engine)

    runs = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FollowTraining, "_finish_epoch", fail)
        with pytest.raises(RuntimeError):
            train_into(runs)
    return runs


@pytest.fixture
def stopped(stopped_runs: Path, tmp_path: Path) -> Path:
    """The run that has failed, in a runs folder of the test's own."""
    runs = shutil.copytree(stopped_runs, tmp_path / "runs")
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    return folder


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    whole: Path, phantom: Path, bundle_run: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"dataset_dir": str(phantom), "max_epochs": EPOCHS, "device": "cpu"}
    again = bundle_run("training", **settings)
    assert equal(weights(again), weights(whole))
    assert figures(again) == figures(whole)
    other = bundle_run("training", seed=1, output_dir=str(tmp_path / "other"), **settings)
    assert not equal(weights(other), weights(whole))


@pytest.mark.slow
def test_a_failed_training_goes_on_in_its_own_run(
    whole: Path, stopped: Path, phantom: Path, bundle_run: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    before = mlflow_run(stopped)[1].info
    assert before.status == "FAILED"
    assert newest_checkpoint(stopped)["epoch"] == 2
    caplog.set_level("INFO")
    bundle_run(
        "training", dataset_dir=str(phantom), max_epochs=EPOCHS, device="cpu", num_workers=2, resume=str(stopped)
    )
    assert f"resuming run {stopped.name} from checkpoint epoch_000002.pt" in caplog.messages
    assert "changed: num_workers from 0 to 2" in caplog.messages
    after = mlflow_run(stopped)[1].info
    assert (after.run_id, after.status) == (before.run_id, "FINISHED")
    assert len(list(stopped.parent.glob("*/run.json"))) == 1
    assert equal(weights(stopped), weights(whole))
    ours, theirs = figures(stopped), figures(whole)
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_from_another_folder_into_another_store_with_data_elsewhere(
    whole: Path, stopped: Path, phantom: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(stopped, moved)
    data = Path(shutil.copytree(phantom, tmp_path / "copied data"))
    command = [sys.executable, "-m", "medseg.cli", "train", "--resume", str(moved), "--dataset_dir", str(data)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming run moved from checkpoint epoch_000002.pt" in done.stdout
    assert "changed: dataset_dir\n" in done.stdout
    assert str(data) not in done.stdout
    assert status(moved) == "FINISHED"
    assert equal(weights(moved), weights(whole))
    assert figures(moved) == pytest.approx(figures(whole), abs=1e-6)
    assert json.loads((moved / "recipe.json").read_text())["dataset_dir"] == str(data)  # where the next resume looks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"learning_rate": 0.5}, r"was started with learning_rate 0.001 \(now 0.5\); leave the change out"),
        ({"max_epochs": 9}, r"was started with max_epochs 4 \(now 9\)"),
        ({"resume": True}, "resume: True is no run's folder"),
        ({"resume": "true"}, "resume: 'true' is no run's folder"),
        ({"resume": ""}, "resume: '' is no run's folder"),
        ({"resume": []}, r"resume: \[\] is no run's folder"),
    ],
)
def test_what_cannot_be_resumed_starts_nothing(
    stopped: Path, phantom: Path, bundle_run: Callable[..., Path], settings: dict[str, Any], says: str
) -> None:
    kept = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    asked = {"dataset_dir": str(phantom), "max_epochs": EPOCHS, "device": "cpu", "resume": str(stopped)} | settings
    with pytest.raises(RuntimeError) as raised:
        bundle_run("training", **asked)
    with pytest.raises(ConfigError, match=says):
        raise raised.value.__cause__
    assert kept == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert len(list(stopped.parent.glob("*/run.json"))) == 1


@pytest.mark.slow
def test_a_full_disk_fails_the_run_in_one_line_and_it_can_go_on(
    whole: Path, phantom: Path, bundle_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def fill(path: Path, content: bytes) -> None:
        write(path, content)
        if "epoch_000003" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    settings = {"dataset_dir": str(phantom), "max_epochs": EPOCHS, "device": "cpu"}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        with pytest.raises(RuntimeError) as raised:
            bundle_run("training", **settings)
    line = failure_line(raised.value)
    assert line.startswith("medseg: DataError: checkpoint epoch_000003.pt of run ")
    assert "cannot be written (No space left on device); the earlier ones are whole: free space on the disk" in line
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/run.json"))
    assert status(folder) == "FAILED"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["epoch_000001.pt", "epoch_000002.pt"]
    bundle_run("training", resume=str(folder), **settings)
    assert status(folder) == "FINISHED"
    assert equal(weights(folder), weights(whole))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize(
    ("program", "number", "code", "says"),
    [
        ("monai.bundle", signal.SIGINT, 130, "medseg: stopped by Ctrl-C"),
        ("monai.bundle", signal.SIGTERM, 143, "medseg: stopped by SIGTERM"),
        ("medseg.cli", signal.SIGINT, 130, "medseg: stopped by Ctrl-C"),  # SIGTERM through it: tests/test_launch.py
    ],
)
def test_a_signal_leaves_a_killed_run_its_exit_code_and_a_checkpoint(
    phantom: Path,
    tiny_overlay: Path,
    tmp_path: Path,
    new_store: Callable[[Path], Path],
    program: str,
    number: int,
    code: int,
    says: str,
) -> None:
    runs = new_store(tmp_path / "runs")
    settings = {"dataset_dir": str(phantom), "output_dir": str(runs), "max_epochs": 5000, "device": "cpu"}
    if program == "medseg.cli":
        command = ["train", "configs/unet_liver.json", str(tiny_overlay)]
        command += [f"{key}={value}" for key, value in settings.items()]
    else:
        command = ["run", "training", "--config_file", f"['configs/unet_liver.json','{tiny_overlay}']"]
        command += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    training = subprocess.Popen(
        [sys.executable, "-m", program, *command],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(runs.glob("*/checkpoints/epoch_000002.pt")):
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(training.pid, number)  # as a terminal does
    else:
        training.send_signal(number)
    _, errors = training.communicate(timeout=60)
    assert training.returncode == code
    assert errors.rstrip().splitlines()[-1] == says
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    assert status(folder) == "KILLED"
    assert newest_checkpoint(folder)["epoch"] >= 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_three_kills_cost_nothing(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    command = [sys.executable, "benchmarks/kills.py", "--kills", "3", "--kills_per_training", "3", "--epochs", "8"]
    done = subprocess.run([*command, "--out", str(out)], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["passed"]
    assert len(result["kills"]) == 3
    assert {kill["aim"] for kill in result["kills"]} == {"any moment", "a write"}
    assert all(training["equal_weights"] for training in result["trainings"])


def test_only_a_runs_folder_is_taken(tmp_path: Path) -> None:
    for wrong in (True, 1, "true", "", [], {}, tmp_path, str(tmp_path / "absent")):
        with pytest.raises(ConfigError, match="is no run's folder; give one, such as runs/NAME, or leave it out"):
            run_folder(wrong)
    (tmp_path / "run.json").touch()
    assert run_folder(str(tmp_path)) == tmp_path.resolve()


RECIPE = {
    "_about_": "a",
    "resume": None,
    "dataset_dir": "there",
    "num_workers": 4,
    "train": {"optimizer": {"_target_": "SGD", "lr": 0.1, "_desc_": "b"}, "sizes": [1, 2]},
}


def changed_recipe(run: Path, **changes: Any) -> dict[str, Any]:
    record(run, RECIPE, {})
    return check_recipe(run, RECIPE | changes)


def test_harmless_changes_are_said_and_paths_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = changed_recipe(tmp_path, _about_="c", resume="runs/a", dataset_dir="here", num_workers=0)
    assert before == RECIPE
    assert caplog.messages == ["changed: dataset_dir", "changed: num_workers from 4 to 0"]


@pytest.mark.parametrize("changes", [{"register_as": "liver", "alias": "best"}, {"flags": {"at_border": ["liver"]}}])
def test_what_is_done_with_a_model_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert changed_recipe(tmp_path, **changes) == RECIPE


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"optimizer": {"_target_": "SGD", "lr": 0.2}, "sizes": [1, 2]}, r"train::optimizer::lr 0.1 \(now 0.2\)"),
        ({"optimizer": {"_target_": "Adam", "lr": 0.1}, "sizes": [1, 2]}, "train::optimizer::_target_ 'SGD'"),
        ({"optimizer": {"_target_": "SGD", "lr": 0.1}, "sizes": [1]}, r"train::sizes \[1, 2\] \(now \[1\]\)"),
        ({"optimizer": {"_target_": "SGD", "lr": 0.1}}, r"train::sizes \[1, 2\] \(now None\)"),
        ({}, r"train::optimizer .* train::sizes"),
    ],
)
def test_changes_that_train_something_else_are_refused(tmp_path: Path, train: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"{says}.*leave the change out, or start a new training"):
        changed_recipe(tmp_path, train=train)


def test_many_changes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a None \(now 1\), b None \(now 1\), c None \(now 1\) and 2 more"):
        changed_recipe(tmp_path, a=1, b=1, c=1, d=1, e=1)


def test_tuples_are_lists_in_a_recipe(tmp_path: Path) -> None:
    changed_recipe(tmp_path, train=RECIPE["train"] | {"sizes": (1, 2)})


def test_a_run_without_its_recipe_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its recipe.json cannot be read; start a new training"):
        check_recipe(tmp_path, RECIPE)


def test_data_are_known_by_content_not_by_place(phantom: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(phantom, tmp_path / "copy"))
    record(tmp_path, {}, describe_data(find_cases(phantom, channels=["ct"])))
    check_data(tmp_path, describe_data(find_cases(data, channels=["ct"])))
    with pytest.raises(DataError, match=r"dataset_dir: the data of run .*, but split otherwise"):
        check_data(tmp_path, describe_data(find_cases(data, channels=["ct"], fold=1)))
    path = min((data / "labelsTr").iterdir())
    label = read_label(path)
    write_nifti(np.where(label.voxels == 2, np.uint8(1), label.voxels), label.affine, path)
    with pytest.raises(
        DataError, match=r"dataset_dir: other data than those of run .* \(8 cases with 8 labels, here 8"
    ):
        check_data(tmp_path, describe_data(find_cases(data, channels=["ct"])))
