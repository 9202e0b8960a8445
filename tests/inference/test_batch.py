import csv
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.bundle import Bundle, open_bundle, task_metadata, write_bundle
from medseg.data import find_scans
from medseg.inference import predict_folder
from medseg.networks import UNet
from medseg.writing import write_nifti

RECIPE = {
    "labels": {"background": 0, "liver": 1, "tumor": 2},
    "regions": {"liver": [1, 2], "tumor": [2]},
    "lesion_region": "tumor",
    "channels": ["ct"],
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "spacing_mm": [2.0, 2.0, 3.0],
    "intensity": {"_target_": "medseg.preprocessing.Window", "low_hu": -100, "high_hu": 200},
    "patch_size": [16, 16, 16],
    "network_def": {
        "_target_": "medseg.networks.UNet",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
        "widths": [4, 8],
    },
    "scan_to_grid": {
        "_target_": "medseg.preprocessing.ScanToGrid",
        "spacing_mm": "@spacing_mm",
        "intensity": "@intensity",
    },
    "inferer": {"_target_": "medseg.inference.SlidingWindow", "patch_size": "@patch_size", "overlap": 0.25},
    "cleanup": [{"_target_": "medseg.postprocessing.KeepLargest", "values": "@regions::liver"}],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with random weights."""
    metadata = task_metadata({}, RECIPE, name="test net", synthetic=True)
    network = UNet(3, 1, 3, widths=[4, 8])
    write_bundle(tmp_path / "bundle", recipe=RECIPE, metadata=metadata, state_dict=network.state_dict())
    return open_bundle(tmp_path / "bundle")


def write_scans(folder: Path) -> None:
    """Two good scans, one in a subfolder and another orientation, and a truncated one."""
    voxels = np.random.default_rng(0).integers(-200, 300, (21, 18, 13)).astype(np.int16)
    write_nifti(voxels, np.diag([-1.5, 1.5, 4.0, 1.0]), folder / "a.nii.gz")
    (folder / "deep").mkdir()
    affine = np.array([[0, 0, -3.0, 40], [1.1, 0, 0, -8], [0, 0.8, 0, 4], [0, 0, 0, 1.0]])
    write_nifti(voxels, affine, folder / "deep" / "b.nii.gz")
    whole = (folder / "a.nii.gz").read_bytes()
    (folder / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])


def test_masks_lie_on_each_scans_own_grid_and_a_bad_file_is_a_row(tmp_path: Path, bundle: Bundle) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    write_scans(scans)
    seen = []
    rows = predict_folder(find_scans(scans, channels=["ct"]), out, bundle, on_row=seen.append)
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert seen == rows
    for name in ("a", "deep/b"):
        scan, mask = nib.load(scans / f"{name}.nii.gz"), nib.load(out / f"{name}_seg.nii.gz")
        assert mask.shape == scan.shape
        assert np.allclose(mask.affine, scan.affine, atol=1e-5)
        assert mask.get_data_dtype() == np.uint8
    assert not list(out.rglob("*broken*"))


def test_the_report_tells_volumes_and_failures(tmp_path: Path, bundle: Bundle) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    write_scans(scans)
    predict_folder(find_scans(scans, channels=["ct"]), out, bundle)
    with (out / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    mask = nib.load(out / "a_seg.nii.gz")
    voxels = np.asanyarray(mask.dataobj)
    liver_ml = np.count_nonzero(voxels) * abs(np.linalg.det(mask.affine)) / 1000
    assert float(rows["a"]["liver_ml"]) == pytest.approx(liver_ml, rel=1e-4)
    assert rows["a"]["precision"] == "float32"
    assert "broken.nii.gz" in rows["broken"]["message"]
    assert rows["broken"]["liver_ml"] == ""
    lesions = (out / "lesions.csv").read_text(encoding="utf-8").splitlines()
    assert lesions[0].startswith("case_id,lesion,volume_ml")
    assert len(lesions) == 1 + sum(int(row["lesion_count"] or 0) for row in rows.values())


def test_the_same_scan_gives_the_same_bytes(tmp_path: Path, bundle: Bundle) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_scans(scans)
    samples = find_scans(scans, channels=["ct"])
    for out in ("one", "two"):
        predict_folder(samples, tmp_path / out, bundle)
    assert (tmp_path / "one/a_seg.nii.gz").read_bytes() == (tmp_path / "two/a_seg.nii.gz").read_bytes()


def test_prediction_loads_neither_monai_nor_mlflow_nor_matplotlib(tmp_path: Path, bundle: Bundle) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    write_scans(scans)
    program = (
        "import sys; sys.argv = ['medseg', 'predict', *sys.argv[1:]]\n"
        "from medseg.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "print(sorted({'monai', 'mlflow', 'matplotlib', 'ignite'} & set(sys.modules)))\n"
    )
    arguments = [str(scans), str(tmp_path / "out"), "--model", str(tmp_path / "bundle"), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["exit 3", "[]"]
    assert "broken" in done.stderr


def test_random_weights_do_make_a_mask(bundle: Bundle) -> None:
    network = bundle.network()
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 16, 16, 16)).argmax(dim=1).unique().numel() > 1
