"""The recipe's run ids, end to end on a small phantom."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_series
from mlflow.tracking import MlflowClient
from monai.bundle import ConfigWorkflow

from medseg.bundle import open_bundle
from medseg.data import find_cases, find_scans, make_phantom
from medseg.inference import predict_folder
from medseg.notices import SYNTHETIC
from medseg.writing import write_nifti

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow

COUNTED = (
    "$losses.class_weights(data.count_labels(@cases.training, @out_channels, ignore_label=@ignore_label, masks=@masks))"
)


@pytest.fixture(scope="module")
def trained(
    phantom: Path, tiny_overlay: Path, tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]
) -> Path:
    """Run folder of a training started as a user starts it."""
    runs = new_store(tmp_path_factory.mktemp("runs"))
    files = f"['configs/unet_liver.json','{tiny_overlay}']"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files]
    command += ["--register_as", "liver", "--alias", "best"]
    done = subprocess.run(
        [*command, "--dataset_dir", str(phantom), "--output_dir", str(runs)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "held_out, 2 cases: Dice liver" in done.stdout
    assert SYNTHETIC in done.stdout
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    return folder


def test_a_training_leaves_a_whole_bundle_pictures_tables_and_a_finished_run(trained: Path) -> None:
    bundle = open_bundle(trained)
    assert bundle.synthetic
    assert bundle.recipe["spacing_mm"] == [8.0, 8.0, 12.0]
    assert 0 <= bundle.metadata["eval_metrics"]["held_out_liver_dice"] <= 1
    assert bundle.network()(torch.zeros(1, 1, 16, 16, 8)).shape == (1, 3, 16, 16, 8)
    pictures = {path.stem for path in (trained / "pictures").iterdir()}
    assert pictures == {"curves", "held_out_best", "held_out_median", "held_out_worst"}

    client = MlflowClient(f"sqlite:///{trained.parent / 'mlflow.db'}")
    run = client.get_run(json.loads((trained / "run.json").read_text())["run_id"])
    assert run.info.status == "FINISHED"
    loss = client.get_metric_history(run.info.run_id, "train_loss")
    assert [point.step for point in loss] == [1, 2]
    assert all(math.isfinite(point.value) for point in loss)
    assert {"validation_liver_dice", "validation_mean_dice", "learning_rate", "samples_per_second"} <= set(
        run.data.metrics
    )
    parts = [run.data.metrics[f"loss_{name}"] for name in ("dice", "cross_entropy")]
    assert sum(parts) == pytest.approx(run.data.metrics["train_loss"], rel=1e-5)
    assert 0 <= run.data.metrics["data_wait_share"] < 1
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert client.get_model_version_by_alias("liver", "best").run_id == run.info.run_id
    [data] = run.inputs.dataset_inputs
    assert set(json.loads(data.dataset.profile)["mean_volume_ml"]) == {"liver", "tumor"}
    assert {
        "bundle",
        "region_volumes.csv",
        "validation_cases.csv",
        "held_out_cases.csv",
        "pictures",
        "recipe.json",
    } <= artifacts


def test_the_best_model_is_the_one_that_validation_found_best(trained: Path) -> None:
    client = MlflowClient(f"sqlite:///{trained.parent / 'mlflow.db'}")
    run_id = json.loads((trained / "run.json").read_text())["run_id"]
    scores = [point.value for point in client.get_metric_history(run_id, "validation_mean_dice")]
    best = client.get_metric_history(run_id, "best_mean_dice")[-1].value
    assert best == max(scores)


def test_the_bundle_tells_what_scans_it_has_learned_from(trained: Path, phantom: Path) -> None:
    known = open_bundle(trained).metadata["training_range"]
    cases = find_cases(phantom, channels=["ct"]).training
    images = [nib.load(str(sample["image"])) for sample in cases]
    lengths = np.array([nib.as_closest_canonical(image).header.get_zooms() for image in images])
    medians = [np.median(image.get_fdata()) for image in images]
    assert (known["cases"], known["channels"], known["modality"]) == (len(cases), ["ct"], "CT")
    assert known["spacing_mm"]["low"] == pytest.approx(lengths.min(axis=0), abs=2e-3)
    assert known["spacing_mm"]["high"] == pytest.approx(lengths.max(axis=0), abs=2e-3)
    assert known["percentiles"]["ct"]["50"] == pytest.approx([min(medians), max(medians)], abs=2)


def test_inference_and_the_command_write_equal_bytes(
    trained: Path, phantom: Path, bundle_run: Callable[..., Path], tmp_path: Path
) -> None:
    scans = phantom / "imagesTs"
    masks = tmp_path / "masks"
    workflow_overrides = {"model": str(trained), "scans_dir": str(scans), "masks_dir": str(masks), "device": "cpu"}
    from monai.bundle import run

    run("inference", config_file="configs/unet_liver.json", logging_file=False, **workflow_overrides)
    command = [sys.executable, "-m", "medseg.cli", "predict", str(scans), str(tmp_path / "out")]
    subprocess.run([*command, "--model", str(trained), "--device", "cpu"], check=True, capture_output=True)
    names = sorted(path.name for path in masks.glob("*_seg.nii.gz"))
    assert len(names) == 2
    for name in names:
        assert (masks / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        scan = nib.load(scans / name.replace("_seg", ""))
        mask = nib.load(masks / name)
        assert mask.shape == scan.shape
        assert np.allclose(mask.affine, scan.affine, atol=1e-4)


def test_inference_sees_the_cases_of_the_command_dicom_too(trained: Path, in_checkout: None, tmp_path: Path) -> None:
    from workflows.inference import FolderInference, scans_to_segment

    scans = tmp_path / "scans"
    voxels = np.random.default_rng(0).integers(-1000, 400, (9, 8, 24)).astype(np.int16)
    write_series(scans / "export", voxels, np.diag([3.0, 3, 3, 1]))
    write_nifti(voxels, np.diag([3.0, 3, 3, 1]), scans / "f.nii")
    places = {"model": str(trained), "runs_dir": str(tmp_path)}
    cases = scans_to_segment(str(scans), **places, masks_dir=str(tmp_path / "masks"))
    assert [case.case_id[:5] for case in cases] == ["case-", "f"]
    FolderInference(dataset=SimpleNamespace(data=cases), output_dir=str(tmp_path / "masks"), **places).run()
    (tmp_path / "out" / ".medseg").mkdir(parents=True)  # of another OUT the pseudonyms are others: here the same key
    shutil.copy(tmp_path / "masks" / ".medseg" / "key", tmp_path / "out" / ".medseg" / "key")
    command = [sys.executable, "-m", "medseg.cli", "predict", str(scans), str(tmp_path / "out"), "--no-pages"]
    subprocess.run([*command, "--model", str(trained), "--device", "cpu"], check=True, capture_output=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*_seg.nii.gz")}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*_seg.nii.gz")}
    assert len(made) == 2
    assert (tmp_path / "masks" / "key.csv").read_text() == (tmp_path / "out" / "key.csv").read_text()


def test_evaluation_finds_what_the_training_found_on_the_held_out_cases(
    trained: Path, phantom: Path, bundle_run: Callable[..., Path]
) -> None:
    folder = bundle_run("evaluation", dataset_dir=str(phantom), model=str(trained), device="cpu")
    tables = []
    for run in (trained, folder):
        client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
        run_id = json.loads((run / "run.json").read_text())["run_id"]
        path = client.download_artifacts(run_id, "held_out_cases.csv")
        with Path(path).open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert [row["case_id"] for row in tables[0]] == [row["case_id"] for row in tables[1]]
    for before, after in zip(*tables, strict=True):
        assert float(before["liver_dice"]) == pytest.approx(float(after["liver_dice"]), abs=1e-6)


def test_the_recipe_has_all_properties_that_monai_checks(
    phantom: Path, trained: Path, in_checkout: None, tmp_path: Path
) -> None:
    for workflow_type in ("train", "infer"):
        workflow = ConfigWorkflow(
            "configs/unet_liver.json",
            workflow_type=workflow_type,
            logging_file=False,
            run_id="training",
            dataset_dir=str(phantom),
            scans_dir=str(phantom / "imagesTs"),
            model=str(trained),
            output_dir=str(tmp_path),
            cache="none",
            num_workers=0,
        )
        workflow.initialize()
        assert workflow.check_properties() == []


def test_a_model_of_another_recipe_is_not_judged(trained: Path, phantom: Path, bundle_run: Callable[..., Path]) -> None:
    with pytest.raises(RuntimeError) as raised:
        bundle_run("evaluation", dataset_dir=str(phantom), model=str(trained), spacing_mm=[9.0, 9.0, 12.0])
    assert "trained with another scan_to_grid, spacing_mm than this recipe" in str(raised.value.__cause__)


def test_the_last_epoch_is_judged_whatever_the_interval(phantom: Path, bundle_run: Callable[..., Path]) -> None:
    folder = bundle_run("training", dataset_dir=str(phantom), val_interval=5, max_epochs=1, device="cpu")
    assert open_bundle(folder).network()


def test_slices_train_and_predict(
    phantom: Path, bundle_run: Callable[..., Path], predicted: Callable[..., None], tmp_path: Path
) -> None:
    folder = bundle_run(
        "training",
        "configs/slices_2d.json",
        dataset_dir=str(phantom),
        patch_size=[32, 32],
        max_epochs=1,
        device="cpu",
        class_weights=COUNTED,
    )
    bundle = open_bundle(folder)
    assert bundle.recipe["spatial_dims"] == 2
    predicted(phantom / "imagesTs", tmp_path / "out", folder)
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 2


def test_two_phases_on_grids_of_their_own_train_and_predict(
    bundle_run: Callable[..., Path], predicted: Callable[..., None], tmp_path: Path
) -> None:
    phantom = make_phantom(tmp_path / "two", cases=6, shape=(40, 36, 20), seed=3, phases=2)
    folder = bundle_run(
        "training", dataset_dir=str(phantom), channels=["portal", "arterial"], in_channels=2, max_epochs=1, device="cpu"
    )
    predicted(phantom / "imagesTs", tmp_path / "out", folder)
    masks = sorted((tmp_path / "out").glob("*_seg.nii.gz"))
    assert masks
    for path in masks:
        first_phase = nib.load(phantom / "imagesTs" / path.name.replace("_seg", "_0000"))
        assert nib.load(path).shape == first_phase.shape
        assert np.allclose(nib.load(path).affine, first_phase.affine, atol=1e-4)


def test_an_nnunet_copy_of_the_phantom_gives_the_same_cases_and_folds(phantom: Path, tmp_path: Path) -> None:
    copy = tmp_path / "Dataset001_Phantom"
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (copy / part).mkdir(parents=True)
        for path in (phantom / part).iterdir():
            name = path.name if part.startswith("labels") else path.name.replace(".nii.gz", "_0000.nii.gz")
            shutil.copy(path, copy / part / name)
    labels = {"background": 0, "liver": 1, "tumor": 2}
    about = {"channel_names": {"0": "ct"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (copy / "dataset.json").write_text(json.dumps(about))
    for fold in range(3):
        msd, nnunet = (find_cases(root, channels=["ct"], fold=fold, folds=3, seed=1) for root in (phantom, copy))
        for split in ("training", "validation", "test"):
            ids = [[sample["case_id"] for sample in getattr(cases, split)] for cases in (msd, nnunet)]
            assert ids[0] == ids[1]
            assert ids[0]


def test_a_failed_training_is_failed_in_mlflow(phantom: Path, bundle_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        bundle_run("training", dataset_dir=str(phantom), learning_rate=1e30, precision="float32", device="cpu")
    runs = tmp_path / "runs"
    (folder,) = (path.parent for path in runs.glob("*/run.json"))
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    run = client.get_run(json.loads((folder / "run.json").read_text())["run_id"])
    assert run.info.status == "FAILED"
    assert "lower `learning_rate`" in (folder / "error.txt").read_text()
    assert "lower `learning_rate`" in run.data.tags["error"]


def test_training_and_prediction_work_with_spawned_workers(
    phantom: Path, tiny_overlay: Path, tmp_path: Path, new_store: Callable[[Path], Path]
) -> None:
    """macOS and Windows start workers by `spawn`: everything a data set holds must travel."""
    program = (
        "import multiprocessing, sys\n"
        "from monai.bundle import run\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    run('training', config_file=['configs/unet_liver.json', sys.argv[1]], dataset_dir=sys.argv[2],\n"
        "        output_dir=sys.argv[3], num_workers=1, max_epochs=1, device='cpu')\n"
        "    run('inference', config_file='configs/unet_liver.json', scans_dir=sys.argv[2] + '/imagesTs',\n"
        "        masks_dir=sys.argv[3] + '/masks', model=next(iter(__import__('pathlib').Path(sys.argv[3])\n"
        "        .glob('*/bundle'))).as_posix(), device='cpu')\n"
    )
    script = tmp_path / "spawned.py"
    script.write_text(program)
    runs = new_store(tmp_path / "runs")
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_overlay), str(phantom), str(runs)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((runs / "masks").glob("*_seg.nii.gz"))) == 2


def test_a_cleanup_rule_may_look_at_the_scan(phantom: Path, bundle_run: Callable[..., Path], tmp_path: Path) -> None:
    from monai.bundle import run

    rule = {"_target_": "medseg.crf.DenseCRF", "intensity": 20, "iterations": 2}
    folder = bundle_run("training", dataset_dir=str(phantom), cleanup=[rule], max_epochs=1, device="cpu")
    scans, masks = phantom / "imagesTs", tmp_path / "masks"
    places = {"model": str(folder), "scans_dir": str(scans), "masks_dir": str(masks)}
    run("inference", config_file="configs/unet_liver.json", logging_file=False, device="cpu", **places)
    rows = predict_folder(find_scans(scans, channels=["ct"]), tmp_path / "out", open_bundle(folder), device="cpu")
    assert [row["status"] for row in rows] == ["done", "done"]
    for mask in masks.glob("*_seg.nii.gz"):
        assert mask.read_bytes() == (tmp_path / "out" / mask.name).read_bytes()
