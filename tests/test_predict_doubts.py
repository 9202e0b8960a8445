"""Confidence, agreement and probabilities as a user of `medseg predict` meets them."""

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from small_bundle import RECIPE, make_bundle, write_scan
from typer.testing import CliRunner

from medseg.bundle import METADATA, open_bundle, task_metadata, write_bundle
from medseg.cli.common import app
from medseg.errors import ConfigError, DataError
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.probabilities import read_array
from medseg.evaluation.temperature import temperature_of
from medseg.inference import Predictor
from medseg.networks import UNet
from medseg.reading import Scan, read_scan
from medseg.report.flags import FlagRules

RULES = {"confidence_below": 0.6, "agreement_below": 0.9}
OBLIQUE = np.array([[0, 0.4, -3.0, 40], [1.1, 0, 0, -8], [0, 0.8, 0.3, 4], [0, 0, 0, 1.0]])


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_IN_PROCESS", "1")


def bundle_with(folder: Path, *, sharpness: float, **metadata) -> Path:
    """A bundle whose logits are those of random weights times `sharpness`, and whose recipe has rules of doubt."""
    torch.manual_seed(0)
    network = UNet(3, 1, 3, widths=[4, 8])
    weights = network.state_dict()
    last = [name for name in weights if weights[name].shape[:1] == (3,)]
    for name in last:  # the outputs' weight and bias
        weights[name] = weights[name] * sharpness
    recipe = RECIPE | {"flags": RULES, "cleanup": []}
    about = task_metadata({}, recipe, name="test net", synthetic=True) | metadata
    write_bundle(folder, recipe=recipe, metadata=about, state_dict=weights)
    return folder


def predict(scans: Path, out: Path, model: Path, *options: str) -> str:
    done = CliRunner().invoke(
        app, ["predict", str(scans), str(out), "--model", str(model), "--device", "cpu", "--no-pages", *options]
    )
    assert done.exit_code == 0, done.output
    return done.output


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_scan(tmp_path / "scans" / "a.nii.gz")
    return tmp_path / "scans"


def full_probabilities(model: Path, scan: Path, temperature: float = 1.0) -> np.ndarray:
    """Softmax of the logits interpolated to every voxel, `(C, X, Y, Z)`, by SciPy in float64."""
    bundle = open_bundle(model)
    predictor = Predictor.from_bundle(bundle)
    prepared = predictor.prepare([read_scan(scan)])
    with torch.inference_mode():
        logits = predictor.inferer(prepared.image[None], predictor.network)[0].double().numpy() / temperature
    grid = prepared.grid
    scan_affine = nib.load(scan).affine
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in grid.scan_shape), indexing="ij"))
    to_working = np.linalg.inv(grid.affine) @ scan_affine
    position = np.einsum("ij,jxyz->ixyz", to_working[:3, :3], voxels) + to_working[:3, 3].reshape(3, 1, 1, 1)
    full = np.stack([map_coordinates(c, position, order=1, mode="nearest") for c in logits])
    full = np.exp(full - full.max(axis=0))
    return full / full.sum(axis=0)


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_map_tables_and_probabilities_are_those_of_the_full_softmax(
    tmp_path: Path, scans: Path, oblique: bool, temperature: float
) -> None:
    if oblique:
        image = nib.load(scans / "a.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), OBLIQUE), scans / "a.nii.gz")
    model = bundle_with(tmp_path / "net", sharpness=3, temperature=temperature)
    out = tmp_path / "out"
    predict(scans, out, model, "--confidence", "--probabilities")
    label = np.asarray(nib.load(out / "a_seg.nii.gz").dataobj)
    full = full_probabilities(model, scans / "a.nii.gz", temperature)
    assert len(np.unique(label)) == 3

    percent = nib.load(out / "a_confidence.nii.gz")
    assert percent.get_data_dtype() == np.uint8
    assert percent.header["descrip"].item().startswith(b"confidence in percent")
    np.testing.assert_allclose(percent.affine, nib.load(out / "a_seg.nii.gz").affine)
    winner = np.take_along_axis(full, label[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(np.asarray(percent.dataobj), np.where(label > 0, 100 * winner, 0), atol=1.3)

    stored = nib.load(out / "a_probabilities.nii.gz")
    np.testing.assert_allclose(np.moveaxis(stored.get_fdata(), -1, 0), full, atol=1e-4)
    assert stored.header["descrip"].item().decode() == f"probabilities, temperature {temperature:g}"

    [row] = table(out / "report.csv")
    assert float(row["liver_confidence"]) == pytest.approx(full[1:].sum(axis=0)[label > 0].mean(), abs=0.005)
    assert float(row["tumor_confidence"]) == pytest.approx(full[2][label == 2].mean(), abs=0.005)
    assert "liver_agreement" not in row
    [case] = json.loads((out / "report.json").read_text())["cases"]
    assert case["liver_confidence"] == pytest.approx(float(row["liver_confidence"]), abs=1e-4)
    lesions = table(out / "lesions.csv")
    sizes = np.array([float(lesion["volume_ml"]) for lesion in lesions])
    means = np.array([float(lesion["mean_probability"]) for lesion in lesions])
    assert (sizes * means).sum() / sizes.sum() == pytest.approx(full[2][label == 2].mean(), abs=0.005)
    assert not list(out.glob(".*nii"))


def test_labels_do_not_depend_on_the_temperature_or_on_what_else_is_written(tmp_path: Path, scans: Path) -> None:
    masks = []
    for name, temperature, options in (("one", 1.0, ()), ("two", 3.0, ("--confidence", "--probabilities"))):
        model = bundle_with(tmp_path / f"net {name}", sharpness=3, temperature=temperature)
        predict(scans, tmp_path / name, model, *options)
        masks.append((tmp_path / name / "a_seg.nii.gz").read_bytes())
    assert masks[0] == masks[1]
    rows = [table(tmp_path / name / "report.csv")[0] for name in ("one", "two")]
    assert float(rows[1]["liver_confidence"]) < float(rows[0]["liver_confidence"])


def test_a_network_that_cannot_decide_raises_the_flag_and_a_sure_one_none(tmp_path: Path, scans: Path) -> None:
    flags = {}
    for name, sharpness in (("undecided", 1e-3), ("sure", 300.0)):
        predict(scans, tmp_path / name, bundle_with(tmp_path / f"net {name}", sharpness=sharpness))
        flags[name] = table(tmp_path / name / "report.csv")[0]["flags"]
    assert "tumor: low confidence (0.3" in flags["undecided"]
    assert flags["sure"] == ""


def test_mirrored_windows_that_disagree_raise_the_flag(tmp_path: Path, scans: Path) -> None:
    model = bundle_with(tmp_path / "net", sharpness=300)
    predict(scans, tmp_path / "out", model, "--mirroring")
    [row] = table(tmp_path / "out" / "report.csv")
    assert 0 <= float(row["tumor_agreement"]) < 0.9  # random weights see each side otherwise
    assert f"tumor: predictions disagree (Dice {float(row['tumor_agreement']):.2f})" in row["flags"]


def test_what_is_asked_for_later_is_made_then_and_goes_with_its_mask(tmp_path: Path, scans: Path) -> None:
    model, out = bundle_with(tmp_path / "net", sharpness=3), tmp_path / "out"
    predict(scans, out, model)
    assert not (out / "a_confidence.nii.gz").exists()
    predict(scans, out, model, "--confidence", "--probabilities")
    made = (out / "a_confidence.nii.gz").read_bytes()
    assert (out / "a_probabilities.nii.gz").exists()
    predict(scans, out, model)  # nothing to do: all stays
    assert (out / "a_confidence.nii.gz").read_bytes() == made
    write_scan(scans / "a.nii.gz", seed=5)
    predict(scans, out, model)  # another scan: the maps were of its old mask
    assert not (out / "a_confidence.nii.gz").exists()
    assert not (out / "a_probabilities.nii.gz").exists()


def test_another_temperature_needs_another_out(tmp_path: Path, scans: Path) -> None:
    model = bundle_with(tmp_path / "net", sharpness=3)
    predict(scans, tmp_path / "out", model)
    metadata = json.loads((model / METADATA).read_text()) | {"temperature": 1.5}
    (model / METADATA).write_text(json.dumps(metadata))
    done = CliRunner().invoke(app, ["predict", str(scans), str(tmp_path / "out"), "--model", str(model)])
    assert "temperature 1.0, now 1.5" in str(done.exception)


def test_confidence_stands_on_the_page_of_a_case(tmp_path: Path, scans: Path) -> None:
    model, out = make_bundle(tmp_path / "net"), tmp_path / "out"
    CliRunner().invoke(app, ["predict", str(scans), str(out), "--model", str(model.root), "--device", "cpu"])
    page = (out / "cases" / "a.html").read_text(encoding="utf-8")
    [row] = table(out / "report.csv")
    assert "Confidence" in page
    assert f"{float(row['liver_confidence']):.2f}" in page


def test_a_temperature_is_fitted_to_what_predict_wrote_and_to_the_logits_themselves(
    tmp_path: Path, scans: Path
) -> None:
    found = []
    for name, temperature in (("cold", 1.0), ("warm", 4.0)):
        model, out = bundle_with(tmp_path / name, sharpness=2, temperature=temperature), tmp_path / f"{name} out"
        predict(scans, out, model, "--probabilities")
        label = np.asarray(nib.load(out / "a_seg.nii.gz").dataobj)
        wrong = np.random.default_rng(0).random(label.shape) < 0.3
        truth = np.where(wrong, (label + 1) % 3, label).astype(np.uint8)
        reference = nib.Nifti1Image(truth, nib.load(out / "a_seg.nii.gz").affine)
        (tmp_path / "ref").mkdir(exist_ok=True)
        nib.save(reference, tmp_path / "ref" / "a.nii.gz")
        judgment = Judgment.of_recipe(open_bundle(model).recipe)
        found.append(temperature_of(out, tmp_path / "ref", judgment))
    assert found[0][1] == 1
    assert found[0][0] > 0.1
    assert found[1][0] == pytest.approx(found[0][0], rel=0.02)  # whatever temperature was in use


def test_thresholds_and_temperatures_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flags::confidence_below: is 70; give a share from 0 to 1"):
        FlagRules.read({"confidence_below": 70}, {"liver": [1]})
    with pytest.raises(ConfigError, match="temperature is 0; give a number above 0, or leave it out"):
        _ = make_bundle(tmp_path / "net", temperature=0).temperature


def test_a_damaged_file_of_probabilities_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a_probabilities.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match=re.escape("a_probabilities.nii.gz: no array can be read there")):
        read_array(tmp_path / "a_probabilities.nii.gz", Scan(np.zeros((1, 1, 1)), np.eye(4)))
