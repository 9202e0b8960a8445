"""Training patches of cases that were annotated in part."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.utils import set_determinism

from medseg.data import Cases, PartialLabels, Sample
from medseg.errors import DataError
from medseg.preprocessing import ScanToGrid, Window
from medseg.transforms import LowestClassd, MergeUnlabeledd, augmentation, training_patches, whole_cases
from medseg.writing import write_nifti

LABELS = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"liver": [1, 2], "tumor": [2]}
TO_GRID = ScanToGrid(spacing_mm=(1.5, 1.5, 3.0), intensity=Window(-100, 200))
AFFINE = np.diag([-1.5, 1.5, 3.0, 1.0])


def write_case(folder: Path, label: np.ndarray, labeled: list[str] | None = None) -> Sample:
    write_nifti(np.random.default_rng(0).integers(-100, 150, label.shape).astype(np.int16), AFFINE, folder / "i.nii.gz")
    write_nifti(label, AFFINE, folder / "l.nii.gz")
    sample: Sample = {"image": str(folder / "i.nii.gz"), "label": str(folder / "l.nii.gz"), "case_id": "case_7"}
    return sample if labeled is None else {**sample, "labeled": labeled}


def anatomy() -> np.ndarray:
    label = np.zeros((20, 17, 11), np.uint8)
    label[3:12, 4:11, 2:8] = 1
    label[5:7, 6:8, 4:6] = 2
    return label


def table(*samples: Sample) -> PartialLabels:
    return PartialLabels(Cases(list(samples), [], [], "MSD"), LABELS, REGIONS, ignore_label=255)


def patches(sample: Sample, partial_labels: PartialLabels | None, ratios: list[float], size=(5, 5, 3)) -> list:
    set_determinism(4)
    pipeline = training_patches(
        TO_GRID,
        ["ct"],
        LABELS,
        patch_size=size,
        patches_per_case=6,
        class_ratios=ratios,
        augmentation=augmentation(len(size), spatial_probability=0.5),
        ignore_label=255,
        partial_labels=partial_labels,
    )
    pipeline.set_random_state(4)
    return pipeline(sample)


def test_what_was_not_annotated_reaches_the_loss_as_its_merged_value(tmp_path: Path) -> None:
    label = anatomy()
    label[label == 1] = 0
    sample = write_case(tmp_path, label, ["tumor"])
    found = torch.stack([patch["label"] for patch in patches(sample, table(sample), [1, 1, 3])])
    assert found.dtype == torch.uint8
    assert set(found.unique().tolist()) == {2, 254}  # 254: background or liver


@pytest.mark.parametrize("size", [(5, 5, 3), (5, 5)])
def test_a_merged_value_is_drawn_as_its_lowest_class(tmp_path: Path, size: tuple[int, ...]) -> None:
    label = anatomy()
    label[label == 2] = 1
    sample = write_case(tmp_path, label, ["liver"])
    partial_labels = table(sample)
    ((value, members),) = partial_labels.merged.items()
    assert members == [1, 2]
    center = tuple(length // 2 for length in size)
    for patch in patches(sample, partial_labels, [0, 1, 0], size):
        assert patch["label"].shape == (1, *size)
        if patch["label"][(0, *center)] == value:
            break
    else:
        pytest.fail("no patch centers on the liver")
    unmoved = training_patches(
        TO_GRID,
        ["ct"],
        LABELS,
        patch_size=size,
        patches_per_case=6,
        class_ratios=[0, 1, 0],
        augmentation=[],
        ignore_label=255,
        partial_labels=partial_labels,
    )
    assert {int(patch["label"][(0, *center)]) for patch in unmoved(sample)} == {value}


def test_where_every_case_has_all_regions_patches_are_as_before(tmp_path: Path) -> None:
    sample = write_case(tmp_path, anatomy())
    before, after = patches(sample, None, [1, 1, 3]), patches(sample, table(sample), [1, 1, 3])
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_the_random_stream_is_that_of_a_whole_case(tmp_path: Path) -> None:
    """The same places and changes are drawn, so cases that are annotated in full train as without the others."""
    partial = write_case(tmp_path, anatomy(), ["liver"])
    whole = write_case(tmp_path, anatomy())
    before, after = patches(whole, None, [1, 1, 3]), patches(whole, table(whole, partial), [1, 1, 3])
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["image"], other["image"])


def test_validation_keeps_the_label_as_it_is_and_says_what_was_annotated(tmp_path: Path) -> None:
    sample = whole_cases(TO_GRID, ["ct"], LABELS, ignore_label=255)(write_case(tmp_path, anatomy(), ["tumor"]))
    assert set(np.unique(sample["label"]).tolist()) == {0, 1, 2}
    assert sample["labeled"] == ["tumor"]


def test_a_training_that_is_not_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"case 'case_7': only tumor was annotated, but training is not told; set part"):
        MergeUnlabeledd(None)({"case_id": "case_7", "labeled": ["tumor"]})


def test_a_combination_outside_the_table_names_the_case() -> None:
    label = SimpleNamespace(voxels=np.zeros((3, 2, 1), np.uint8))
    with pytest.raises(DataError, match=r"case 'case_7': labeled \['liver'\] leaves the classes \[1, 2\] open"):
        MergeUnlabeledd(table({"labeled": ["tumor"]}))({"case_id": "case_7", "label": label, "labeled": ["liver"]})


def test_the_lowest_class_is_written_beside_the_label() -> None:
    label = torch.tensor([[[254, 253, 2, 255, 0]]], dtype=torch.uint8)
    sample = LowestClassd({254: [0, 1], 253: [2, 1]}, "where")({"label": label})
    assert sample["where"].tolist() == [[[0, 1, 2, 255, 0]]]
    assert label.tolist() == [[[254, 253, 2, 255, 0]]]
