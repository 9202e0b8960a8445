"""What a user reads when the data or a setting is wrong: a line of ours, which says what to do.

That it is the last line of stderr is tested here once, and in test_recipe.py: a process takes seconds to start.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.reading import read_label
from medseg.writing import write_nifti
from workflows.failure import failure_line

CHECKOUT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def broken(phantom: Path, tmp_path: Path) -> Path:
    """A copy of the phantom to break."""
    return Path(shutil.copytree(phantom, tmp_path / "data"))


def missing_data_set(data: Path) -> dict[str, Any]:
    shutil.rmtree(data)
    return {}


def image_without_label(data: Path) -> dict[str, Any]:
    next(iter(sorted((data / "labelsTr").iterdir()))).unlink()
    return {}


def label_on_another_grid(data: Path) -> dict[str, Any]:
    path = next(iter(sorted((data / "labelsTr").iterdir())))
    label = read_label(path)
    write_nifti(label.voxels[:, :, 1:], label.affine, path)
    return {}


def unknown_label_value(data: Path) -> dict[str, Any]:
    for path in (data / "labelsTr").iterdir():
        label = read_label(path)
        write_nifti(np.where(label.voxels == 2, np.uint8(7), label.voxels), label.affine, path)
    return {}


def missing_channel(data: Path) -> dict[str, Any]:
    about = json.loads((data / "dataset.json").read_text())
    about["modality"] = {"0": "portal", "1": "arterial"}
    (data / "dataset.json").write_text(json.dumps(about))
    return {"channels": ["portal", "arterial"], "in_channels": 2}


def misspelled_override(data: Path) -> dict[str, Any]:
    return {"max_epoch": 2}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing_data_set, "no such folder"),
        (image_without_label, r"labelsTr/phantom_\d+.nii.gz.*no such file|phantom_\d+.*no label"),
        (label_on_another_grid, "case .phantom_.*label grid differs from image grid"),
        (unknown_label_value, r"the label holds the values \[7\], the recipe knows \[0, 1, 2, 255\]"),
        (missing_channel, "arterial"),
        (misspelled_override, "did you mean.*max_epochs"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_line_says_what_is_wrong(
    broken: Path, bundle_run: Callable[..., Path], tmp_path: Path, spoil: Callable[[Path], dict[str, Any]], says: str
) -> None:
    settings = spoil(broken)
    with pytest.raises(RuntimeError) as raised:
        bundle_run("training", dataset_dir=str(broken), **settings)
    line = failure_line(raised.value)
    assert line.startswith("medseg: ")
    assert re.search(says, line), line
    assert not list((tmp_path / "runs").glob("*/bundle"))


def test_the_command_prints_that_line_alone(broken: Path, tiny_overlay: Path, tmp_path: Path) -> None:
    unknown_label_value(broken)
    command = [sys.executable, "-m", "medseg.cli", "train", "configs/unet_liver.json", str(tiny_overlay)]
    done = subprocess.run(
        [*command, f"dataset_dir={broken}", f"output_dir={tmp_path / 'runs'}"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    started, *rest = done.stderr.strip().splitlines()
    assert started.startswith("python -m monai.bundle run training")
    assert len(rest) == 1
    assert rest[0].startswith("medseg: DataError: case 'phantom_")
