"""A temperature that was planted is found again."""

import re
from pathlib import Path

import numpy as np
import pytest
from planted_cases import RECIPE

from medseg.errors import ConfigError, DataError
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
