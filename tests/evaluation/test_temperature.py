"""A temperature that was planted is found again."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted_cases import RECIPE, reference, write_planted
from small_bundle import make_bundle
from typer.testing import CliRunner

from medseg.cli import app
from medseg.errors import ConfigError, DataError
from medseg.evaluation import recording
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.temperature import temperature_of
from medseg.writing import write_nifti

JUDGMENT = Judgment.of_recipe(RECIPE)
SHAPE = (18, 16, 12)


def write_case(folder: Path, name: str, *, temperature: float, channels: int = 3, sigmoid: bool = False) -> None:
    """Labels drawn from probabilities, which are then made surer by the temperature."""
    rng = np.random.default_rng(len(name))
    logits = rng.normal(0, 2, (channels, *SHAPE))
    if sigmoid:
        tumor = rng.random(SHAPE) < 1 / (1 + np.exp(-logits[1]))
        label = np.where(tumor, 2, 0)
        logits[0] = logits[1]  # every tumor voxel is one of the liver, and here the other way round
        sure = 1 / (1 + np.exp(-logits * temperature))
    else:
        true = np.exp(logits) / np.exp(logits).sum(axis=0)
        label = (true.cumsum(axis=0) < rng.random(SHAPE)).sum(axis=0)
        sure = np.exp(logits * temperature) / np.exp(logits * temperature).sum(axis=0)
    write_nifti(label.astype(np.uint8), np.eye(4), folder / "ref" / f"{name}.nii.gz")
    (folder / "prob").mkdir(exist_ok=True)
    np.save(folder / "prob" / f"{name}.npy", sure)


def test_the_planted_temperature_is_found(tmp_path: Path) -> None:
    for name in ("a", "bb", "ccc"):
        write_case(tmp_path, name, temperature=2.5)
    found, cases = temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)
    assert found == pytest.approx(2.5, rel=0.06)
    assert cases == 3


def test_the_temperature_of_regions_with_a_sigmoid_is_found(tmp_path: Path) -> None:
    for name in ("a", "bb", "ccc"):
        write_case(tmp_path, name, temperature=0.6, channels=2, sigmoid=True)
    judgment = Judgment.of_recipe({**RECIPE, "activation": "sigmoid"})
    assert temperature_of(tmp_path / "prob", tmp_path / "ref", judgment)[0] == pytest.approx(0.6, rel=0.06)


def test_labels_as_probabilities_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "a", temperature=1)
    sure = np.load(tmp_path / "prob" / "a.npy")
    np.save(tmp_path / "prob" / "a.npy", (sure == sure.max(axis=0)).astype(np.float32))
    with pytest.raises(ConfigError, match="prob: all probabilities are 0 or 1"):
        temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "a", temperature=1)
    array = np.load(tmp_path / "prob" / "a.npy")
    np.save(tmp_path / "prob" / "a.npy", array * 3)
    with pytest.raises(DataError, match=re.escape("a.npy: values from")):
        temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)
    (tmp_path / "prob" / "a.npy").rename(tmp_path / "prob" / "other.npy")
    with pytest.raises(DataError, match="no case of it has a reference"):
        temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)


def write_nifti_case(folder: Path, name: str, *, move_mm: float = 0.0) -> None:
    """A case whose probabilities are NIfTI, as medseg predict writes them."""
    write_case(folder, name, temperature=1)
    array = folder / "prob" / f"{name}.npy"
    stored, affine = np.moveaxis(np.load(array), 0, -1).astype(np.float32), np.eye(4)
    affine[0, 3] = move_mm
    array.unlink()
    write_nifti(stored, affine, folder / "prob" / f"{name}_probabilities.nii.gz")


def test_probabilities_elsewhere_in_the_patient_are_refused(tmp_path: Path) -> None:
    write_nifti_case(tmp_path, "a")
    assert temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)[1] == 1
    write_nifti_case(tmp_path, "a", move_mm=3.0)
    with pytest.raises(DataError, match=re.escape("a_probabilities.nii.gz: not on the reference's grid")):
        temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)


def test_labels_and_channels_that_the_model_lacks_are_named_with_their_file(tmp_path: Path) -> None:
    write_case(tmp_path, "a", temperature=1, channels=4)  # with labels 0 to 3
    four = np.load(tmp_path / "prob" / "a.npy")
    with pytest.raises(DataError, match=re.escape("a.npy: 4 channels, and the model has 3")):
        temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)
    np.save(tmp_path / "prob" / "a.npy", four[:3])
    with pytest.raises(DataError, match=re.escape("a.nii.gz: label value 3, and the model's are 0 to 2")):
        temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT)
    assert temperature_of(tmp_path / "prob", tmp_path / "ref", replace(JUDGMENT, ignore_label=3))[1] == 1


def test_only_the_cases_that_are_asked_for_are_taken(tmp_path: Path) -> None:
    write_case(tmp_path, "a", temperature=1)
    write_case(tmp_path, "bb", temperature=1)
    (tmp_path / "prob" / "bb.npy").write_bytes(b"damaged")
    assert temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT, case_ids=["a"])[1] == 1
    with pytest.raises(DataError, match="prob: no case of it was judged"):
        temperature_of(tmp_path / "prob", tmp_path / "ref", JUDGMENT, case_ids=["c"])


def test_a_temperature_that_cannot_be_written_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, references, _ = write_planted(tmp_path, cases=2)
    (tmp_path / "prob").mkdir()
    sure = np.stack([np.where(reference(0) == value, 0.9, 0.05) for value in range(3)])
    np.save(tmp_path / "prob" / "case_000.npy", sure)
    (tmp_path / "prob" / "case_001.npy").write_bytes(b"damaged")  # a failed case, and none to fit to
    monkeypatch.setattr(recording, "record", lambda *_: None)
    monkeypatch.setattr(recording, "write_temperature", lambda *_: False)
    model = make_bundle(tmp_path / "net").root
    arguments = ["evaluate", masks, tmp_path / "card", "--ref", references, "--run", model, "--fit-temperature"]
    arguments += ["--probabilities", tmp_path / "prob", "--split", "validation"]
    told = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(told.exception, ConfigError)
    assert "of 1 cases: could not be written to the metadata of net's bundle" in str(told.exception)
    assert "in the metadata" not in told.output
    assert "2 cases, 1 failed" in told.output
