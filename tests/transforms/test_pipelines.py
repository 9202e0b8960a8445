from pathlib import Path

import numpy as np
import pytest
import torch
from monai.utils import set_determinism

from medseg.data import Sample
from medseg.errors import DataError
from medseg.preprocessing import ScanToGrid, Window
from medseg.transforms import LogitsToLabeld, PadToPatchd, ReadCased, augmentation, training_patches, whole_cases
from medseg.writing import write_nifti

LABELS = {"background": 0, "liver": 1, "tumor": 2}
AFFINE = np.diag([-1.5, 1.5, 3.0, 1.0])
TO_GRID = ScanToGrid(spacing_mm=(1.5, 1.5, 3.0), intensity=Window(-100, 200))


def write_case(folder: Path, *, label: np.ndarray | None = None, label_affine: np.ndarray = AFFINE) -> Sample:
    """A case of 20 x 17 x 11 voxels; its liver is a box brighter than the rest."""
    image = np.random.default_rng(0).integers(-100, 0, (20, 17, 11)).astype(np.int16)
    if label is None:
        label = np.zeros(image.shape, np.uint8)
        label[3:12, 4:11, 2:8] = 1
        label[5:7, 6:8, 4:6] = 2
    image[label == 1] += 100
    write_nifti(image, AFFINE, folder / "image.nii.gz")
    write_nifti(label, label_affine, folder / "label.nii.gz")
    return {"image": str(folder / "image.nii.gz"), "label": str(folder / "label.nii.gz"), "case_id": "case_7"}


def patches(patch_size: list[int], class_ratios: list[float], **settings: float) -> object:
    return training_patches(
        TO_GRID,
        ["ct"],
        LABELS,
        patch_size=patch_size,
        patches_per_case=4,
        class_ratios=class_ratios,
        augmentation=augmentation(len(patch_size), **settings),
        ignore_label=255,
    )


def test_a_validation_case_has_its_image_on_the_grid_and_its_label_on_the_scan(tmp_path: Path) -> None:
    to_grid = ScanToGrid(spacing_mm=(3, 3, 3), intensity=Window(-100, 200))
    sample = whole_cases(to_grid, ["ct"], LABELS, ignore_label=255)(write_case(tmp_path))
    assert sample["image"].shape == (1, 11, 9, 11)
    assert sample["label"].shape == (1, 20, 17, 11)
    assert sample["grid"].scan_shape == (20, 17, 11)


def test_patches_center_on_the_class_that_the_ratios_ask_for(tmp_path: Path) -> None:
    set_determinism(0)
    for patch in patches([5, 5, 3], [0, 0, 1], spatial_probability=0, intensity_probability=0)(write_case(tmp_path)):
        assert patch["image"].shape == (1, 5, 5, 3)
        assert patch["label"].dtype == torch.uint8
        assert patch["label"][0, 2, 2, 1] == 2


def test_a_case_without_the_class_is_sampled_elsewhere_without_a_warning(tmp_path: Path) -> None:
    label = np.zeros((20, 17, 11), np.uint8)
    label[3:12, 4:11, 2:8] = 1
    taken = patches([5, 5, 3], [0, 1, 9])(write_case(tmp_path, label=label))
    assert len(taken) == 4


def test_a_case_smaller_than_the_patch_is_padded_with_its_lowest_value_and_the_ignored_label(tmp_path: Path) -> None:
    (patch, *_) = patches([24, 17, 11], [1, 1, 1], spatial_probability=0, intensity_probability=0)(write_case(tmp_path))
    assert patch["image"].shape == (1, 24, 17, 11)
    assert torch.all(patch["label"][0, [0, 1, 22, 23]] == 255)
    assert torch.all(patch["image"][0, [0, 1, 22, 23]] == patch["image"].min())
    assert not torch.any(patch["label"][0, 2:22] == 255)


def test_padding_leaves_the_input_as_it_was() -> None:
    sample = {"image": torch.rand(2, 4, 5, 6), "label": torch.ones(1, 4, 5, 6, dtype=torch.uint8)}
    padded = PadToPatchd([8, 4, 7], 255)(sample)
    assert padded["image"].shape == (2, 8, 5, 7)
    assert sample["image"].shape == (2, 4, 5, 6)


def test_a_flat_patch_gives_axial_slices(tmp_path: Path) -> None:
    for patch in patches([8, 8], [1, 1, 1])(write_case(tmp_path)):
        assert patch["image"].shape == (1, 8, 8)
        assert patch["label"].shape == (1, 8, 8)


def test_augmentation_keeps_label_values_and_moves_image_and_label_together(tmp_path: Path) -> None:
    set_determinism(3)
    taken = patches([16, 16, 11], [1, 1, 1], spatial_probability=1, flip_axes=[0], intensity_probability=0)(
        write_case(tmp_path)
    )
    for patch in taken:
        assert set(patch["label"].unique().tolist()) <= {0, 1, 2, 255}
        liver, rest = patch["image"][patch["label"] == 1], patch["image"][patch["label"] == 0]
        assert liver.mean() > rest.mean() + 0.2  # 100 HU of a 300 HU window, less the edges


def test_perfect_logits_come_back_as_the_label_on_the_scans_own_grid(tmp_path: Path) -> None:
    sample = whole_cases(TO_GRID, ["ct"], LABELS, ignore_label=255)(write_case(tmp_path))
    on_grid = TO_GRID.label(sample["label"][0].numpy().astype(np.uint8), sample["grid"])
    logits = torch.nn.functional.one_hot(on_grid.long()[0], 3).movedim(-1, 0)[None].float()
    restored = LogitsToLabeld()({**sample, "pred": logits})
    assert torch.equal(restored["pred"][0], sample["label"].as_tensor())


@pytest.mark.parametrize("value", [3, 7])
def test_a_label_value_outside_the_recipe_names_case_and_value(tmp_path: Path, value: int) -> None:
    label = np.zeros((20, 17, 11), np.uint8)
    label[3:5] = value
    with pytest.raises(DataError, match=rf"case 'case_7': the label holds the values \[{value}\].*\[0, 1, 2, 255\]"):
        ReadCased(["ct"], LABELS, 255)(write_case(tmp_path, label=label))


def test_a_label_on_another_grid_names_the_case(tmp_path: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] = 15
    with pytest.raises(DataError, match="case 'case_7': the label lies on another grid"):
        ReadCased(["ct"], LABELS, 255)(write_case(tmp_path, label_affine=shifted))


def test_ignored_voxels_are_allowed_in_a_label(tmp_path: Path) -> None:
    label = np.full((20, 17, 11), 255, np.uint8)
    label[4:9] = 1
    assert "label" in ReadCased(["ct"], LABELS, 255)(write_case(tmp_path, label=label))
