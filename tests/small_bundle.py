"""A small model with random weights, and scans for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.bundle import Bundle, open_bundle, task_metadata, write_bundle
from medseg.networks import UNet
from medseg.writing import write_nifti

RECIPE: dict[str, Any] = {
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


def make_bundle(folder: Path, *, seed: int = 0, **metadata: Any) -> Bundle:
    """A bundle with random weights."""
    torch.manual_seed(seed)
    about = task_metadata({}, RECIPE, name="test net", synthetic=True) | metadata
    write_bundle(folder, recipe=RECIPE, metadata=about, state_dict=UNet(3, 1, 3, widths=[4, 8]).state_dict())
    return open_bundle(folder)


def write_scan(path: Path, *, seed: int = 0, shape: tuple[int, int, int] = (21, 18, 13)) -> None:
    """A scan of noise around soft tissue, with air beside it."""
    write_nifti(_noise(seed, shape), np.diag([-1.5, 1.5, 4.0, 1.0]), path)


def _noise(seed: int, shape: tuple[int, int, int]) -> NDArray[np.int16]:
    voxels = np.random.default_rng(seed).integers(-200, 300, shape).astype(np.int16)
    voxels[:3] = -1000
    return voxels


def write_scans(folder: Path) -> None:
    """Two good scans, one in a subfolder and another orientation, and a truncated one."""
    write_scan(folder / "a.nii.gz")
    affine = np.array([[0, 0, -3.0, 40], [1.1, 0, 0, -8], [0, 0.8, 0, 4], [0, 0, 0, 1.0]])
    write_nifti(_noise(0, (21, 18, 13)), affine, folder / "deep" / "b.nii.gz")
    whole = (folder / "a.nii.gz").read_bytes()
    (folder / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
