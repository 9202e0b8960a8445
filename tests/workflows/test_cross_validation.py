"""Cross-validation: folds as processes of their own, and what they show together."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lesion_images import write_lesion_images
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from monai.bundle import run as run_bundle
from PIL import Image

from medseg import cli, launch
from medseg.bundle import open_bundle
from medseg.data import find_cases, find_scans
from medseg.errors import ConfigError
from medseg.inference import predict_folder
from medseg.reading import MaskCode
from medseg.writing import write_mask_png
from workflows.cross_validation import as_one, check_splits, chosen_folds, spread
from workflows.failure import failure_line
from workflows.fold_processes import run_folds, share
from workflows.fold_runs import find_fold, is_finished, note_fold, parent_id
from workflows.out_of_fold import Judge

CHECKOUT = Path(__file__).parents[2]
REGIONS = ("liver", "tumor")


def command(*settings: str, files: Sequence[str | Path] = ()) -> list[str]:
    return [sys.executable, "-m", "medseg.cli", "train", *map(str, files), *settings]


def cross_validation_of(runs: Path) -> Path:
    (folder,) = runs.glob("*-cross_validation")
    return folder


def mlflow_run(folder: Path) -> Run:
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    return client.get_run(json.loads((folder / "run.json").read_text())["run_id"])


def points(folder: Path, name: str) -> dict[int, float]:
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    history = client.get_metric_history(json.loads((folder / "run.json").read_text())["run_id"], name)
    return {point.step: point.value for point in history}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def overlay(folder: Path, **ids: Any) -> Path:
    path = folder / "folds.json"
    path.write_text(json.dumps({"folds": 2} | ids))
    return path


@pytest.fixture(scope="module")
def trained(
    phantom: Path, tiny_overlay: Path, tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]
) -> Path:
    """Run folder of a cross-validation of two folds, both at a time, as a user starts it."""
    runs = new_store(tmp_path_factory.mktemp("runs"))
    files = ["configs/unet_liver.json", tiny_overlay, overlay(runs, max_epochs=1)]
    settings = [f"dataset_dir={phantom}", f"output_dir={runs}", "device=cpu", "held_out_fraction=0.2"]
    asked = command(*settings, "--folds", "all", "--jobs", "2", files=files)
    done = subprocess.run(asked, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "fold 0: " in done.stdout
    assert "fold 1: " in done.stdout
    assert "2 folds, Dice of cases that a fold has not seen, mean ± standard deviation: liver 0." in done.stdout
    return cross_validation_of(runs)


@pytest.mark.slow
def test_folds_are_child_runs_of_one_parent(trained: Path) -> None:
    parent = mlflow_run(trained)
    assert parent.info.status == "FINISHED"
    for fold in range(2):
        folder = find_fold(trained, fold)
        assert folder is not None
        assert is_finished(folder)
        child = mlflow_run(folder)
        assert (child.info.status, child.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent.info.run_id)
        assert child.data.params["fold"] == str(fold)
    assert len(list(trained.parent.glob("*/run.json"))) == 3


@pytest.mark.slow
def test_the_parent_has_mean_and_standard_deviation_of_what_the_folds_validations_found(trained: Path) -> None:
    figures = mlflow_run(trained).data.metrics
    for name in (*(f"{region}_dice" for region in REGIONS), "mean_dice"):
        found = []
        for fold in range(2):
            run = find_fold(trained, fold)
            assert run is not None
            # after one epoch the best model is that of the only validation, which MONAI's evaluator has run
            validated = points(run, f"validation_{name}").get(1)
            own = points(trained, f"out_of_fold_{name}").get(fold)
            assert own == (None if validated is None else pytest.approx(validated, abs=1e-4))
            found += [] if own is None else [own]
        assert figures.get(f"{name}_mean") == (pytest.approx(statistics.fmean(found)) if found else None)
        assert figures.get(f"{name}_std") == (pytest.approx(statistics.stdev(found)) if len(found) > 1 else None)


@pytest.mark.slow
def test_every_training_case_is_segmented_once_by_the_fold_that_has_not_seen_it(
    trained: Path, phantom: Path, tmp_path: Path
) -> None:
    splits = json.loads((trained / "splits.json").read_text())
    all_cases = find_cases(phantom, channels=["ct"], folds=2)
    labeled = {sample["case_id"]: sample for sample in [*all_cases.training, *all_cases.validation]}
    held_out = splits[0]["held_out"]
    assert held_out
    rows = rows_of(trained / "out_of_fold" / "cases.csv")
    assert [row["case_id"] for row in rows] == sorted(labeled.keys() - set(held_out))
    masks = {path.name.removesuffix("_seg.nii.gz") for path in (trained / "out_of_fold").glob("*_seg.nii.gz")}
    assert masks == {row["case_id"] for row in rows}
    for row in rows:
        fold = int(row["fold"])
        assert row["case_id"] in splits[fold]["val"]
        recorded = json.loads((trained / "recipe.json").read_text())
        run = find_fold(trained, fold)
        assert run is not None
        client = MlflowClient(f"sqlite:///{trained.parent / 'mlflow.db'}")
        used = json.loads(Path(client.download_artifacts(mlflow_run(run).info.run_id, "split.json")).read_text())
        assert row["case_id"] not in used["training"]
        assert not set(held_out) & {*used["training"], *used["validation"]}
        assert recorded["held_out_fraction"] == 0.2
    first = rows[0]
    run = find_fold(trained, int(first["fold"]))
    predict_folder(find_scans(labeled[first["case_id"]]["image"], channels=["ct"]), tmp_path, open_bundle(str(run)))
    name = f"{first['case_id']}_seg.nii.gz"
    assert (tmp_path / name).read_bytes() == (trained / "out_of_fold" / name).read_bytes()
    for table in ("report.csv", "cases.csv"):
        assert len(rows_of(trained / "out_of_fold" / table)) == len(rows)
    lesions = sum(int(row["lesion_count"]) for row in rows_of(trained / "out_of_fold" / "report.csv"))
    assert len(rows_of(trained / "out_of_fold" / "lesions.csv")) == lesions


@pytest.mark.slow
def test_the_ensemble_is_judged_on_held_out_cases_beside_each_fold(trained: Path) -> None:
    bundle = open_bundle(trained)
    known = bundle.metadata["ensemble"]
    assert bundle.folds == (0, 1)
    assert bundle.synthetic
    assert known["held_out_cases"] == len(rows_of(trained / "held_out" / "report.csv")) >= 2
    for fold in range(2):
        run = find_fold(trained, fold)
        assert run is not None
        found = mlflow_run(run).data.metrics["held_out_liver_dice"]  # by MONAI's evaluator
        assert known["dice"][f"fold_{fold}"]["liver_dice"] == pytest.approx(found, abs=1e-3)
    figures = mlflow_run(trained).data.metrics
    assert known["dice"]["ensemble"]["liver_dice"] == pytest.approx(figures["held_out_liver_dice"], abs=1e-4)
    assert known["seconds_per_case"]["ensemble"] > 0
    assert str(trained.parent) not in (trained / "bundle" / "configs" / "recipe.json").read_text()


@pytest.mark.slow
def test_the_ensemble_is_reduced_to_its_best_fold(trained: Path, phantom: Path, tmp_path: Path) -> None:
    best = open_bundle(trained).metadata["ensemble"]["best_fold"]
    asked = [sys.executable, "-m", "medseg.cli", "bundle", "reduce", str(trained), str(tmp_path / "reduced")]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert f"fold {best} instead of 2 folds; Dice on " in done.stdout
    scans = find_scans(phantom / "imagesTs", channels=["ct"])
    for model, out in ((tmp_path / "reduced", "ours"), (find_fold(trained, best), "own")):
        predict_folder(scans, tmp_path / out, open_bundle(str(model)))
    masks = sorted(path.name for path in (tmp_path / "own").glob("*_seg.nii.gz"))
    assert len(masks) == 2
    for name in masks:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()


@pytest.mark.slow
def test_a_finished_cross_validation_trains_nothing_again(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.parent.glob("*-fold_*/checkpoints/*")}
    masks = {path: path.stat().st_mtime_ns for path in trained.glob("out_of_fold/*.nii.gz")}
    done = subprocess.run(command("--resume", str(trained)), cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "fold 0 is finished" in done.stdout
    assert "fold 1 is finished" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in trained.parent.glob("*-fold_*/checkpoints/*")}
    assert masks == {path: path.stat().st_mtime_ns for path in trained.glob("out_of_fold/*.nii.gz")}
    assert mlflow_run(trained).info.status == "FINISHED"
    assert len(list(trained.parent.glob("*/run.json"))) == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_a_killed_cross_validation_goes_on_where_it_stood(
    phantom: Path, tiny_overlay: Path, tmp_path: Path, new_store: Callable[[Path], Path]
) -> None:
    runs = new_store(tmp_path / "runs")
    files = ["configs/unet_liver.json", tiny_overlay, overlay(tmp_path, max_epochs=40, val_interval=20)]
    asked = launch.training_arguments(
        [Path(file) for file in files],
        [("dataset_dir", str(phantom)), ("output_dir", str(runs)), ("device", "cpu"), ("chosen_folds", "all")],
        run_id="cross_validation",
    )
    training = subprocess.Popen(
        [sys.executable, *asked], cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(runs.glob("*-fold_1/checkpoints/epoch_000002.pt")):
        assert training.poll() is None
        time.sleep(0.05)
    training.send_signal(signal.SIGKILL)
    training.wait()
    parent = cross_validation_of(runs)
    folds = [find_fold(parent, fold) for fold in range(2)]
    assert folds[0] is not None
    assert folds[1] is not None
    until = time.monotonic() + 60
    while mlflow_run(folds[1]).info.status != "KILLED":  # nobody waits for it, so it ends by itself
        assert time.monotonic() < until
        time.sleep(0.2)
    assert is_finished(folds[0])
    kept = {path: path.stat().st_mtime_ns for path in (folds[0] / "checkpoints").iterdir()}
    done = subprocess.run(command("--resume", str(parent)), cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"fold 0 is finished: {folds[0].name}" in done.stdout
    assert f"resuming run {folds[1].name} from checkpoint epoch_" in done.stdout
    assert kept == {path: path.stat().st_mtime_ns for path in (folds[0] / "checkpoints").iterdir()}
    assert [mlflow_run(run).info.status for run in (parent, *filter(None, folds))] == ["FINISHED"] * 3
    assert len(list(runs.glob("*/run.json"))) == 3
    assert open_bundle(parent).folds == (0, 1)
    assert len(rows_of(parent / "out_of_fold" / "cases.csv")) == 6


@pytest.mark.slow
def test_a_failed_fold_does_not_stop_the_others(
    phantom: Path, tiny_overlay: Path, tmp_path: Path, in_checkout: None, new_store: Callable[[Path], Path]
) -> None:
    runs = new_store(tmp_path / "runs")
    bad = overlay(tmp_path, max_epochs="$1 // @fold")  # fold 0 cannot be trained
    files = ["configs/unet_liver.json", str(tiny_overlay), str(bad)]
    settings = {"dataset_dir": str(phantom), "output_dir": str(runs), "device": "cpu", "chosen_folds": [0, 1]}
    with pytest.raises(RuntimeError) as raised:
        run_bundle("cross_validation", config_file=files, logging_file=False, **settings)
    parent = cross_validation_of(runs)
    last = failure_line(raised.value)
    assert last.startswith(f"medseg: DataError: cross-validation {parent.name}: 1 failed (fold 0: medseg: ")
    assert last.endswith("the others are done, continue with --resume")
    assert mlflow_run(parent).info.status == "FAILED"
    fold_1 = find_fold(parent, 1)
    assert fold_1 is not None
    assert mlflow_run(fold_1).info.status == "FINISHED"
    assert {row["fold"] for row in rows_of(parent / "out_of_fold" / "cases.csv")} == {"1"}
    assert not (parent / "bundle").exists()


@pytest.mark.slow
def test_without_held_out_cases_the_speed_of_the_ensemble_is_compared_and_no_dice(
    tmp_path: Path, new_store: Callable[[Path], Path]
) -> None:
    """Of 2D images, whose masks are PNG files."""
    runs = new_store(tmp_path / "runs")
    data = write_lesion_images(tmp_path / "data", 6)
    tiny = overlay(tmp_path, max_epochs=1, val_interval=1, patch_size=[32, 32], **{"network_def::widths": [4, 8]})
    settings = [f"dataset_dir={data}", f"output_dir={runs}", "device=cpu", "held_out_fraction=0.0"]
    asked = command(*settings, "--folds", "all", files=["configs/unet_images.json", tiny])
    done = subprocess.run(asked, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parent = cross_validation_of(runs)
    rows = rows_of(parent / "out_of_fold" / "cases.csv")
    assert len(rows) == len(list((parent / "out_of_fold").glob("*_seg.png"))) == 6
    bundle = open_bundle(parent)
    (region,) = bundle.regions
    assert all(0 <= float(row[f"{region}_dice"]) <= 1 and float(row[f"{region}_reference_px"]) > 0 for row in rows)
    known = bundle.metadata["ensemble"]
    assert (known["held_out_cases"], "dice" in known) == (0, False)
    assert known["seconds_per_case"].keys() == {"ensemble", "fold_0", "fold_1"}
    assert not any(name.startswith("held_out") for name in mlflow_run(parent).data.metrics)
    assert "the ensemble's Dice cannot be measured" in done.stdout
    assert not (parent / "held_out").exists()


def test_masks_of_images_are_judged_by_their_label_values_whatever_the_given_masks_hold(tmp_path: Path) -> None:
    given, ours = np.zeros((5, 7), np.uint8), np.zeros((7, 5, 1), np.uint8)
    given[1:3, 2:5] = 255  # rows 1 and 2, columns 2 to 4: six pixels
    ours[2:5, 2:4] = 1  # columns 2 to 4, rows 2 and 3: six pixels, three of them in common
    Image.fromarray(given).save(tmp_path / "label.png")
    write_mask_png(ours, tmp_path / "a_seg.png")
    labels = {"background": 0, "lesion": 1}
    bundle: Any = SimpleNamespace(regions={"lesion": [1]}, labels=labels, unit="px")
    judge = Judge(masks=MaskCode(labels, values={"lesion": 255}))
    samples: list[Any] = [{"case_id": name, "label": str(tmp_path / "label.png")} for name in "ab"]
    report = [
        {"case_id": "a", "status": "done", "message": "", "seconds": "0.5"},
        {"case_id": "b", "status": "failed", "message": "cut short", "seconds": 9.0},
    ]
    judged = judge(samples, tmp_path, report, bundle)
    assert judged.dice == {"lesion_dice": pytest.approx(0.5), "mean_dice": pytest.approx(0.5)}
    assert (judged.seconds, judged.failed) == (0.5, ["b"])
    assert judged.rows[0]["lesion_reference_px"] == 6
    assert judged.rows[1] == {"case_id": "b", "status": "failed", "message": "cut short"}


def test_folds_are_all_or_numbers() -> None:
    assert chosen_folds("all", 3) == [0, 1, 2]
    assert chosen_folds([2, 0, 2], 3) == chosen_folds((0, 2), 3) == [0, 2]
    assert chosen_folds(1, 2) == [1]


@pytest.mark.parametrize("wrong", ["some", "0,2", [], [0.0], [True], None, True, {}, ["0"]])
def test_anything_else_is_no_choice_of_folds(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"""chosen_folds: is .*; give "all", or numbers such as \[0, 2\]"""):
        chosen_folds(wrong, 3)


@pytest.mark.parametrize("absent", [-1, 3])
def test_a_fold_that_is_not_there_is_refused(absent: int) -> None:
    with pytest.raises(ConfigError, match=rf"there is no fold {absent}; the data set has folds 0 to 2"):
        chosen_folds([0, absent], 3)


def split(train: str, val: str) -> Any:
    return {"train": list(train), "val": list(val), "held_out": []}


def test_folds_divide_the_same_cases_and_validate_each_once(caplog: pytest.LogCaptureFixture) -> None:
    check_splits([split("bc", "a"), split("ac", "b"), split("ab", "c")])
    assert not caplog.text
    with pytest.raises(ConfigError, match="fold 1: case 'c' is in this fold or in fold 0, not in both"):
        check_splits([split("bc", "a"), split("a", "b")])
    with pytest.raises(ConfigError, match="fold 1: case 'a' validates fold 0 too; a cross-validation judges each"):
        check_splits([split("bc", "a"), split("c", "ab")])
    check_splits([split("bc", "a"), split("ac", "b")])
    assert "1 cases validate no fold: they get no out-of-fold prediction" in caplog.text


def test_the_data_of_all_folds_are_those_of_one(phantom: Path) -> None:
    folds = [as_one(find_cases(phantom, channels=["ct"], folds=3, fold=fold)) for fold in range(3)]
    assert folds[0] == folds[1] == folds[2]
    assert not folds[0].training
    assert len(folds[0].validation) == 6


def test_the_spread_over_folds_is_that_of_a_sample_and_leaves_out_what_was_not_judged() -> None:
    found = spread({0: {"a_dice": 0.2, "b_dice": 0.5}, 1: {"a_dice": 0.5, "b_dice": float("nan")}, 2: {"a_dice": 0.8}})
    # of a: deviations -0.3, 0, 0.3 -> variance 0.18 / 2 -> 0.3
    assert found["a_dice_mean"] == pytest.approx(0.5)
    assert found["a_dice_std"] == pytest.approx(0.3)
    assert found["b_dice_mean"] == 0.5
    assert found["b_dice_std"] != found["b_dice_std"]  # NaN: one fold has no deviation


def test_jobs_share_threads_and_gpus() -> None:
    assert share(0, jobs=1, threads=8, gpus=["0", "1"]) == {}
    assert share(1, jobs=3, threads=8, gpus=["5"]) == {"OMP_NUM_THREADS": "2"}
    assert share(0, jobs=8, threads=2, gpus=[]) == {"OMP_NUM_THREADS": "1"}
    assert share(2, jobs=4, threads=8, gpus=["4", "7"])["CUDA_VISIBLE_DEVICES"] == "4"


def test_one_that_fails_does_not_stop_the_others_and_no_more_than_asked_run_at_a_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import pathlib, sys, time; folder, fold = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "(folder / fold).touch(); print('at once:', len(list(folder.iterdir()))); time.sleep(0.4)\n"
        "(folder / fold).unlink()\n"
        "if fold == '1': print('no such scan', file=sys.stderr); sys.exit(3)\n"
        "if fold == '2': sys.exit(4)\n"
    )
    at_work = tmp_path / "at_work"
    at_work.mkdir()
    ended = run_folds({fold: ["-c", code, str(at_work), str(fold)] for fold in range(4)}, jobs=2)
    assert ended == {0: None, 1: "no such scan", 2: ended[2], 3: None}
    assert ended[2] is not None
    out = capfd.readouterr().out
    assert "fold 1: no such scan\n" in out
    assert max(int(line[-1]) for line in out.splitlines() if "at once" in line) == 2


def test_nothing_to_train_is_done_at_once() -> None:
    assert run_folds({}, jobs=3) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_folds_are_ended_with_the_cross_validation(tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): pathlib.Path(sys.argv[1]).write_text('closed'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop); pathlib.Path(sys.argv[1]).touch(); time.sleep(60)\n"
    )
    marks = [tmp_path / "0", tmp_path / "1"]

    def interrupt() -> None:
        while not all(mark.exists() for mark in marks):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_folds({fold: ["-c", code, str(mark)] for fold, mark in enumerate(marks)}, jobs=2)
    assert [mark.read_text() for mark in marks] == ["closed", "closed"]


def test_a_fold_is_found_beside_its_cross_validation_wherever_both_are(tmp_path: Path) -> None:
    parent, run = tmp_path / "a" / "all", tmp_path / "a" / "one"
    run.mkdir(parents=True)
    assert find_fold(parent, 0) is None
    note_fold(parent, 0, run)
    assert find_fold(parent, 0) is None  # a folder that is no run
    (run / "run.json").write_text("{}")
    assert find_fold(parent, 0) == run
    (tmp_path / "a").rename(tmp_path / "b")
    assert find_fold(tmp_path / "b" / "all", 0) == tmp_path / "b" / "one"
    assert find_fold(tmp_path / "b" / "all", 1) is None


def test_a_fold_needs_the_run_of_its_cross_validation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"part_of: .* is no run's folder; give that of the cross-validation"):
        parent_id(tmp_path)


@pytest.mark.parametrize(("text", "folds"), [("all", "all"), ("0", [0]), ("2,0", [2, 0]), ("0, 1", [0, 1])])
def test_the_command_takes_all_or_numbers(text: str, folds: Any) -> None:
    assert launch.parse_folds(text) == folds


@pytest.mark.parametrize("text", ["", "some", "1-3", "-1", "0,,1", "1.5"])
def test_the_command_refuses_other_folds(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--folds: .* is neither all nor numbers such as 0,2"):
        launch.parse_folds(text)


@pytest.fixture
def asked(in_checkout: None, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Trainings are noted, not started."""
    noted: list[Sequence[str]] = []

    def train(arguments: Sequence[str]) -> int:
        noted.append(arguments)
        return 0

    monkeypatch.setattr(launch, "train", train)
    return noted


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["medseg", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_folds_and_jobs_start_the_run_id(asked: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = "configs/unet_liver.json"
    assert run_command(monkeypatch, recipe, "--folds", "0,2", "--jobs", "2") == 0
    started = ["-m", "monai.bundle", "run", "cross_validation", "--config_file", recipe]
    assert asked == [[*started, "--chosen_folds", "[0, 2]", "--jobs", "2"]]


def test_a_cross_validation_is_resumed_as_one(
    asked: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("recipe.json", "splits.json"):
        (tmp_path / name).touch()
    assert run_command(monkeypatch, "--resume", str(tmp_path), "--jobs", "3") == 0
    assert asked[0][3] == "cross_validation"
    assert list(asked[0][-4:]) == ["--jobs", "3", "--resume", tmp_path.as_posix()]


def test_jobs_without_folds_are_refused(
    asked: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "configs/unet_liver.json", "--jobs", "2") == 2
    assert capsys.readouterr().err == "medseg: --jobs: is for folds; add --folds all, or leave it out\n"
    assert not asked
