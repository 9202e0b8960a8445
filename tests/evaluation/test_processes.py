"""How many cases are judged at a time."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from planted_cases import RECIPE

from medseg.evaluation import judging
from medseg.evaluation.judging import MB_A_PROCESS, Task, fitting_jobs
from medseg.evaluation.judgment import Judgment
from medseg.evaluation.probabilities import memory_mb

SHAPE = (4, 64, 64, 64)  # 1 Mi values


def write(folder: Path, name: str) -> Path:
    path, values = folder / name, np.zeros(SHAPE, dtype=np.float16)
    if name.endswith(".npz"):
        np.savez_compressed(path, other=values[0], probabilities=values)
    elif name.endswith(".npy"):
        np.save(path, values)
    else:
        nib.save(nib.Nifti1Image(np.moveaxis(values, 0, -1).astype(np.uint8), np.eye(4)), path)
    return path


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a_probabilities.nii.gz"])
def test_the_memory_of_an_array_is_known_by_its_header(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    assert memory_mb(path) == 12
    path.write_bytes(b"damaged")
    assert memory_mb(path) == 0


def test_probabilities_leave_room_for_fewer_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("a", tmp_path / "a", tmp_path / "b", Judgment.of_recipe(RECIPE))
    small, large = write(tmp_path, "small.npy"), tmp_path / "large.npy"
    np.lib.format.open_memmap(large, "w+", np.float16, (15, 100, 100, 100))  # 171 MB to read
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(judging, "available_mb", lambda: 10 * MB_A_PROCESS)
    of_arrays = [Task("a", task.mask, task.reference, task.judgment, probabilities=path) for path in (small, large)]
    assert fitting_jobs([task] * 20) == 10
    assert fitting_jobs([of_arrays[0]] * 20) == 9
    assert fitting_jobs([*of_arrays, *[task] * 20]) == 15000 // (1500 + 171)
