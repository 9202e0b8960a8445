"""Run id `evaluation` writes the card, end to end on a small phantom."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from medseg.bundle import open_bundle

pytestmark = pytest.mark.slow


def test_evaluation_writes_the_card_logs_it_and_tells_the_bundle(
    phantom: Path, bundle_run: Callable[..., Path]
) -> None:
    trained = bundle_run("training", dataset_dir=str(phantom), max_epochs=1, device="cpu")
    before = open_bundle(trained).metadata["eval_metrics"]
    folder = bundle_run("evaluation", dataset_dir=str(phantom), model=str(trained), device="cpu")
    assert folder != trained

    about = json.loads((folder / "evaluation" / "summary.json").read_text())["about"]
    assert (about["n"], about["failed"], about["split"], about["held_out"]) == (2, 0, "held_out", True)
    assert about["checked"]
    assert about["model"] == trained.name
    assert "trained on synthetic data" in (folder / "evaluation" / "index.html").read_text(encoding="utf-8")

    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    run = client.get_run(json.loads((folder / "run.json").read_text())["run_id"])
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/index.html", "evaluation/cases.csv", "evaluation/summary.json"} <= artifacts

    path = client.download_artifacts(run.info.run_id, "held_out_cases.csv")
    with Path(path).open(encoding="utf-8", newline="") as file:
        of_table = {row["case_id"]: float(row["liver_dice"]) for row in csv.DictReader(file)}
    with (folder / "evaluation" / "cases.csv").open(encoding="utf-8", newline="") as file:
        of_card = {row["case_id"]: float(row["liver_dice"]) for row in csv.DictReader(file)}
    assert of_card == pytest.approx(of_table, abs=1e-4)

    after = open_bundle(trained).metadata["eval_metrics"]
    assert before.keys() <= after.keys()
    assert after["held_out_n"] == 2
    assert after["held_out_liver_dice"] == pytest.approx(sum(of_card.values()) / 2, abs=1e-3)
