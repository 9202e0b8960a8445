"""An evaluation of a run's masks is recorded in the run, whose status stays."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planted_cases import reference, write_planted
from small_bundle import make_bundle
from typer.testing import CliRunner

from medseg.bundle import open_bundle
from medseg.cli import app
from medseg.errors import ConfigError
from medseg.evaluation.recording import check_model, figures, record, write_eval_metrics


@pytest.fixture
def trained(tmp_path: Path, new_store: Callable[[Path], Path]) -> Path:
    """A finished run with a bundle, which was trained on case_000 and has held out the others."""
    from medseg import tracking

    run = tracking.start_run(runs_dir=new_store(tmp_path / "runs"), experiment="liver", name="small")
    split = {"training": ["case_000"], "validation": [], "test": ["case_001", "case_002"]}
    run.log_data({"sha256": "c" * 64}, split=split)
    make_bundle(run.folder / "bundle", eval_metrics={"held_out_liver_dice": 0.5, "validation_mean_dice": 0.4})
    run.finish("FINISHED")
    return run.folder


def evaluate(*arguments: object) -> str:
    told = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if isinstance(told.exception, ConfigError):
        raise told.exception
    assert told.exit_code == 0, told.output
    return told.output


def test_a_run_gets_the_card_and_its_bundle_the_figures(trained: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    masks, references, _ = write_planted(tmp_path, cases=3)
    for folder, name in ((masks, "case_000_seg.nii.gz"), (references, "case_000.nii.gz")):
        (folder / name).unlink()
    out = tmp_path / "card"
    evaluate(masks, out, "--ref", references, "--run", trained, "--split", "held_out")
    about = json.loads((out / "summary.json").read_text())["about"]
    assert about["held_out"] is True
    assert about["checked"]
    assert open_bundle(trained).metadata["eval_metrics"]["validation_mean_dice"] == 0.4
    assert open_bundle(trained).metadata["eval_metrics"]["held_out_liver_dice"] == 1

    client = MlflowClient(f"sqlite:///{trained.parent / 'mlflow.db'}")
    run = client.get_run(json.loads((trained / "run.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["held_out_tumor_dice_all"] == 1
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/index.html", "evaluation/cases.csv", "evaluation/summary.json"} <= artifacts


def test_cases_that_the_model_was_trained_on_are_named(trained: Path, tmp_path: Path) -> None:
    masks, references, _ = write_planted(tmp_path, cases=3)
    output = evaluate(masks, tmp_path / "card", "--ref", references, "--model", trained)
    about = json.loads((tmp_path / "card" / "summary.json").read_text())["about"]
    assert about["held_out"] is False
    assert "1 judged cases have ids that the model was trained on: case_000" in output
    assert "trained on: case_000" in (tmp_path / "card" / "index.html").read_text(encoding="utf-8")
    assert about["data_sha256"] is None  # no data.json in this small run


def test_a_temperature_is_fitted_on_validation_cases_alone(trained: Path, tmp_path: Path) -> None:
    masks, references, _ = write_planted(tmp_path, cases=3)
    (tmp_path / "prob").mkdir()
    for number in range(3):
        label = reference(number)
        sure = np.stack([np.where(label == value, 0.9, 0.05) for value in range(3)])
        np.save(tmp_path / "prob" / f"case_{number:03d}.npy", sure)
    arguments = [masks, tmp_path / "card", "--ref", references, "--run", trained, "--fit-temperature"]
    with pytest.raises(ConfigError, match="--fit-temperature needs validation cases"):
        evaluate(*arguments, "--probabilities", tmp_path / "prob", "--split", "test")
    output = evaluate(*arguments, "--probabilities", tmp_path / "prob", "--split", "validation")
    assert "temperature 0.0" in output  # always right and never sure: as sharp as it may be
    assert open_bundle(trained).metadata["temperature"] < 0.1
    assert open_bundle(trained).metadata["temperature_cases"] == 3


def test_masks_of_other_weights_are_not_recorded(trained: Path, tmp_path: Path) -> None:
    masks, _, _ = write_planted(tmp_path, cases=1)
    content = json.loads((masks / "run.json").read_text())
    content["settings"]["weights_sha256"] = "d" * 64
    (masks / "run.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="OUT: its masks are of other weights"):
        check_model(masks, open_bundle(trained))
    content["settings"]["weights_sha256"] = open_bundle(trained).weights_sha256()
    (masks / "run.json").write_text(json.dumps(content))
    check_model(masks, open_bundle(trained))


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, new_store: Callable[[Path], Path]) -> None:
    from medseg import tracking

    run = tracking.start_run(runs_dir=new_store(tmp_path / "runs"), experiment="liver")
    try:
        with pytest.raises(ConfigError, match=re.escape(f"run {run.folder.name} is RUNNING")):
            record(run.folder, tmp_path, {})
    finally:
        run.finish("KILLED")


def test_a_run_that_is_recorded_in_keeps_its_end(trained: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{trained.parent / 'mlflow.db'}")
    run_id = json.loads((trained / "run.json").read_text())["run_id"]
    before = client.get_run(run_id).info.end_time
    record(trained, tmp_path, {"about": {"n": 1, "failed": 0}, "settings": {}, "summary": {}, "pooled": {}})
    after = client.get_run(run_id)
    assert (after.info.status, after.info.end_time) == ("FINISHED", before)
    assert after.data.metrics["evaluation_n"] == 1


def test_a_zip_keeps_its_metadata(trained: Path, tmp_path: Path) -> None:
    path = shutil.make_archive(str(tmp_path / "zipped"), "zip", trained / "bundle")
    content = {"about": {"n": 1, "failed": 0}, "settings": {}, "summary": {}, "pooled": {}}
    assert not write_eval_metrics(open_bundle(path), content)
    assert figures(content) == {"evaluation_n": 1, "evaluation_failed": 0}
