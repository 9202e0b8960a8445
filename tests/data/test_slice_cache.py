"""Slices of volumes kept on disk: a crop reads its slice, not the volume."""

import numpy as np
import pytest
import torch

from medseg.data.cache import CachedCases
from medseg.preprocessing import ImageToGrid, ScanToGrid, Window, ZScore
from medseg.reading import MaskCode
from medseg.transforms import training_patches, whole_cases
from medseg.writing import write_nifti

LABELS = {"background": 0, "liver": 1}


@pytest.fixture
def sample(tmp_path):
    rng = np.random.default_rng(0)
    write_nifti(rng.integers(-100, 200, (40, 36, 12)).astype(np.int16), np.diag([1.0, 1, 1, 1]), tmp_path / "i.nii.gz")
    write_nifti(rng.integers(0, 2, (40, 36, 12)).astype(np.uint8), np.diag([1.0, 1, 1, 1]), tmp_path / "l.nii.gz")
    return {"image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "l.nii.gz"), "case_id": "a"}


@pytest.mark.parametrize("neighbors", [0, 1])
def test_a_slice_lies_in_one_piece_in_a_cached_case(sample, tmp_path, neighbors):
    steps = training_patches(
        ScanToGrid(spacing_mm=(1, 1, 1), intensity=Window(-100, 200)),
        ["ct"],
        LABELS,
        patch_size=[16, 16],
        patches_per_case=1,
        class_ratios=[1, 1],
        augmentation=[],
        ignore_label=255,
        neighbors=neighbors,
    )
    cases = CachedCases([sample], steps, cache="disk", cache_dir=tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.pt")
    mapped = torch.load(file, weights_only=True, mmap=True)
    for key in ("image", "label"):
        stored = mapped[key]
        assert stored.shape == (1, 40, 36, 12 + 2 * neighbors)
        for number in range(stored.shape[-1]):
            assert stored[..., number].is_contiguous()
    assert cases[0][0]["image"].shape == (2 * neighbors + 1, 16, 16)


def test_the_grid_of_a_cached_image_is_still_in_pixels(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 12)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    Image.fromarray(np.where(pixels > 99, 255, 0).astype(np.uint8)).save(tmp_path / "m.png")
    sample = {"image": str(tmp_path / "i.png"), "label": str(tmp_path / "m.png"), "case_id": "a"}
    to_grid = ImageToGrid(intensity=ZScore(), pixel_scale=2)
    for code, expected in (({"liver": 255}, 1), ({"background": 255, "liver": 0}, 0)):
        masks = MaskCode(LABELS, values=code)
        steps = whole_cases(to_grid, ["gray"], LABELS, ignore_label=255, masks=masks)
        cached = CachedCases([sample], steps, cache="disk", cache_dir=tmp_path / "cache")[0]
        assert cached["grid"].unit == "px"
        assert cached["grid"].shape == (7, 5, 1)  # 12 x 9 pixels, every second
        brightest = np.unravel_index(pixels.argmax(), pixels.shape)
        assert cached["label"][0, brightest[1], brightest[0], 0] == expected  # another meaning is another case
