import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from small_bundle import make_bundle, write_scan, write_scans

from medseg.bundle import Bundle
from medseg.data import find_scans
from medseg.inference import predict_folder
from medseg.inference.batch import Options
from medseg.inference.messages import Extras


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with random weights."""
    return make_bundle(tmp_path / "bundle")


def test_masks_lie_on_each_scans_own_grid_and_a_bad_file_is_a_row(tmp_path: Path, bundle: Bundle) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
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
    write_scans(scans)
    samples = find_scans(scans, channels=["ct"])
    for out in ("one", "two"):
        predict_folder(samples, tmp_path / out, bundle)
    assert (tmp_path / "one/a_seg.nii.gz").read_bytes() == (tmp_path / "two/a_seg.nii.gz").read_bytes()


def test_nothing_shows_an_earlier_mask_of_a_case_that_fails_now(tmp_path: Path, bundle: Bundle) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    for name in ("a", "deep/b"):
        write_scan(scans / f"{name}.nii.gz")
    every = Extras(pages=True, formats=("nrrd", "stl"), instances=True, confidence=True, probabilities=True)
    samples = find_scans(scans, channels=["ct"])
    predict_folder(samples, out, bundle, options=Options(extras=every))
    of_b = {path.name for path in (out / "deep").iterdir()}
    assert len(of_b) == 7  # mask, instances, confidence, probabilities, .seg.nrrd and two surfaces
    for name in ("a", "deep/b"):
        for ending in ("_seg.dcm", "_rtstruct.dcm"):  # of a series that has become a file
            (out / f"{name}{ending}").touch()
    (scans / "deep" / "b.nii.gz").write_bytes(b"broken")
    rows = predict_folder(samples, out, bundle, options=Options(extras=every))
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert not list((out / "deep").iterdir())
    assert not (out / "cases" / "deep" / "b.html").exists()
    assert {path.name for path in out.glob("a[_.]*")} == {f"a{name[1:]}" for name in of_b} | {
        "a_seg.dcm",
        "a_rtstruct.dcm",
    }
    assert (out / "cases" / "a.html").exists()


def test_random_weights_do_make_a_mask(bundle: Bundle) -> None:
    network = bundle.network()
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 16, 16, 16)).argmax(dim=1).unique().numel() > 1
