"""Trainings with one sigmoid a region, and with cases that are annotated in part, end to end on a small phantom."""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from medseg.bundle import open_bundle

pytestmark = pytest.mark.slow

REGIONS = {"liver": [1, 2], "tumor": [2]}


def table_of(folder: Path, name: str) -> list[dict[str, str]]:
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    path = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}").download_artifacts(run_id, name)
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metrics_of(folder: Path) -> Mapping[str, float]:
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    return MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}").get_run(run_id).data.metrics


@pytest.fixture(scope="module")
def halves(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom, every other case with its tumors only, the others with their livers only; held-out cases whole."""
    folder = tmp_path_factory.mktemp("halves") / "phantom"
    shutil.copytree(phantom, folder)
    labeled = {}
    for index, path in enumerate(sorted((folder / "labelsTr").iterdir())):
        stored = nib.load(path)
        label = np.asarray(stored.dataobj)
        label = np.where(label == 2, 2, 0) if index % 2 else (label > 0) * 1
        nib.save(nib.Nifti1Image(label.astype(np.uint8), stored.affine), path)
        labeled[path.name.removesuffix(".nii.gz")] = ["tumor"] if index % 2 else ["liver"]
    (folder / "labeled.json").write_text(json.dumps(labeled))
    return folder


@pytest.mark.parametrize("overlays", [(), ("configs/regions.json",)], ids=["classes", "regions"])
def test_cases_annotated_in_part_train_and_are_judged_by_what_was_annotated(
    halves: Path, bundle_run: Callable[..., Path], caplog: pytest.LogCaptureFixture, overlays: tuple[str, ...]
) -> None:
    deep = {"network_def::deep_supervision": True}
    with caplog.at_level("INFO"):
        folder = bundle_run("training", *overlays, dataset_dir=str(halves), folds=3, device="cpu", **deep)
    labeled = json.loads((halves / "labeled.json").read_text())
    rows = table_of(folder, "validation_cases.csv")
    assert len(rows) == 2
    for row in rows:
        (known,) = labeled[row["case_id"]]
        (unknown,) = set(REGIONS) - {known}
        assert row[f"{known}_reference_ml"] != ""
        assert {row[f"{unknown}_{column}"] for column in ("dice", "iou", "pred_ml", "reference_ml")} == {""}
    metrics = metrics_of(folder)
    counts = [sum(labeled[row["case_id"]] == [region] for row in rows) for region in REGIONS]
    assert [metrics["validation_liver_n"], metrics["validation_tumor_n"]] <= counts  # a case may have no tumor
    assert metrics["held_out_liver_n"] == 2
    assert "held_out, 2 cases: Dice liver" in caplog.text
    assert "(n=2)" in caplog.text


@pytest.fixture(scope="module")
def regional(
    phantom: Path, tiny_overlay: Path, tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]
) -> Path:
    """Run folder of a training with one sigmoid a region, long enough to find livers."""
    from monai.bundle import run

    runs = new_store(tmp_path_factory.mktemp("runs"))
    settings = {"dataset_dir": str(phantom), "output_dir": str(runs), "device": "cpu"}
    long_enough = {"max_epochs": 12, "val_interval": 12, "learning_rate": 0.02}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        files = ["configs/unet_liver.json", "configs/regions.json", str(tiny_overlay)]
        run("training", config_file=files, logging_file=False, **settings, **long_enough)
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    return folder


def test_a_region_model_predicts_the_same_by_command_and_by_recipe(
    regional: Path, phantom: Path, in_checkout: None, predicted: Callable[..., None], tmp_path: Path
) -> None:
    from monai.bundle import run

    bundle = open_bundle(regional)
    assert bundle.activation == "sigmoid"
    pred = bundle.metadata["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "liver", "1": "tumor"}
    scans, masks, out = phantom / "imagesTs", tmp_path / "masks", tmp_path / "out"
    overrides = {"model": str(regional), "scans_dir": str(scans), "masks_dir": str(masks), "device": "cpu"}
    run("inference", config_file="configs/unet_liver.json", logging_file=False, **overrides)
    predicted(scans, out, regional)
    rows = {row["case_id"]: row for row in table_of(regional, "held_out_cases.csv")}
    assert len(rows) == 2
    for case_id, row in rows.items():
        mask = masks / f"{case_id}_seg.nii.gz"
        assert mask.read_bytes() == (out / mask.name).read_bytes()
        found, expected = (
            np.asarray(nib.load(path).dataobj) for path in (mask, phantom / "labelsTs" / f"{case_id}.nii.gz")
        )
        assert 1 in found  # else equal bytes would say little
        for region, values in REGIONS.items():  # what validation painted is what prediction paints
            inside, reference = np.isin(found, values), np.isin(expected, values)
            if inside.any() or reference.any():
                dice = 2 * np.sum(inside & reference) / (inside.sum() + reference.sum())
                assert float(row[f"{region}_dice"]) == pytest.approx(dice, abs=1e-6)


def test_a_region_model_is_judged_by_its_own_recipe_only(
    regional: Path, phantom: Path, bundle_run: Callable[..., Path]
) -> None:
    folder = bundle_run(
        "evaluation", "configs/regions.json", dataset_dir=str(phantom), model=str(regional), device="cpu"
    )
    before, after = (metrics_of(run)["held_out_liver_dice"] for run in (regional, folder))
    assert after == pytest.approx(before, abs=1e-6)
    with pytest.raises(RuntimeError) as raised:
        bundle_run("evaluation", dataset_dir=str(phantom), model=str(regional), device="cpu")
    assert "trained with another activation, network_def, out_channels" in str(raised.value.__cause__)
