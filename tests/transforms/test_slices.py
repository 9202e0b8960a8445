"""2.5D: what a training crop and inference show the network for a slice is the same."""

from collections import Counter

import numpy as np
import pytest
import torch
from monai.utils import set_determinism

from medseg.errors import ConfigError
from medseg.inference import SliceBySlice, SlidingWindow
from medseg.preprocessing import Range, ScanToGrid, neighbor_slices
from medseg.transforms import training_patches, whole_cases
from medseg.transforms.slices import SliceMajord
from medseg.writing import write_nifti

SHAPE = (9, 7, 5)
LABELS = {"background": 0, "liver": 1}
TO_GRID = ScanToGrid(spacing_mm=(1, 1, 3), intensity=Range(0, 1))  # 0 ... 1: values stay as they are


@pytest.fixture
def sample(tmp_path):
    """Two channels of noise; the liver is a voxel column, so that every slice may be the middle of a crop."""
    rng = np.random.default_rng(3)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    paths = []
    for channel in range(2):
        paths.append(str(tmp_path / f"c{channel}.nii.gz"))
        write_nifti(rng.random(SHAPE).astype(np.float32), affine, paths[-1])
    label = np.zeros(SHAPE, np.uint8)
    label[4, 3] = 1
    write_nifti(label, affine, tmp_path / "label.nii.gz")
    return {"image": paths, "label": str(tmp_path / "label.nii.gz"), "case_id": "a"}


def crops(sample, neighbors, *, patch_size=(9, 7), count=60, class_ratios=(0, 1)):
    set_determinism(0)
    steps = training_patches(
        TO_GRID,
        ["one", "two"],
        LABELS,
        patch_size=list(patch_size),
        patches_per_case=count,
        class_ratios=list(class_ratios),
        augmentation=[],
        ignore_label=255,
        neighbors=neighbors,
    )
    return steps(sample)


def shown_by_inference(sample, neighbors):
    """What the network is given for each slice, `(slices, channels, X, Y)`."""
    given = []

    def network(window):
        given.append(window.clone())
        return window[:, :1].clone()

    image = whole_cases(TO_GRID, ["one", "two"], LABELS, ignore_label=255)(sample)["image"][None]
    inferer = SliceBySlice(SlidingWindow((9, 7), overlap=0.0, blend="constant"), neighbors=neighbors)
    logits = inferer(image, network)
    assert logits.shape == (1, 1, *SHAPE)
    return torch.cat(given), torch.as_tensor(logits)


@pytest.mark.parametrize("neighbors", [0, 1, 2])
def test_training_and_inference_show_the_same_channels_for_a_slice(sample, neighbors):
    shown, _ = shown_by_inference(sample, neighbors)
    assert shown.shape == (5, 2 * (2 * neighbors + 1), 9, 7)
    seen = Counter()
    for crop in crops(sample, neighbors):
        (found,) = [number for number in range(5) if torch.equal(crop["image"], shown[number])]
        seen[found] += 1
        assert crop["label"].shape == (1, 9, 7)
        assert crop["label"][0, 4, 3] == 1
        assert int(crop["label"].sum()) == 1  # the middle slice alone, none of the repeated ones
    assert set(seen) == set(range(5))  # the end slices too


def test_a_channels_slices_lie_together_and_end_slices_repeat():
    volume = torch.arange(2 * 5, dtype=torch.float32).view(2, 1, 1, 5)  # channel 0: 0 ... 4, channel 1: 5 ... 9
    around = neighbor_slices(volume, 1)[:, 0, 0]
    assert around[:, 0].tolist() == [0, 0, 1, 5, 5, 6]
    assert around[:, 2].tolist() == [1, 2, 3, 6, 7, 8]
    assert around[:, 4].tolist() == [3, 4, 4, 8, 9, 9]


def test_the_logits_of_a_slice_are_restacked_in_its_place(sample):
    _, logits = shown_by_inference(sample, 1)
    image = whole_cases(TO_GRID, ["one", "two"], LABELS, ignore_label=255)(sample)["image"]
    expected = torch.as_tensor(image)[0, :, :, [0, 0, 1, 2, 3]]  # the first channel: one slice below
    torch.testing.assert_close(logits[0, 0], expected)


def test_a_volume_of_more_slices_than_go_at_once(monkeypatch):
    monkeypatch.setattr("medseg.inference.sliding_window.SLICES_AT_ONCE", 3)
    volume = torch.rand(2, 1, 8, 9, 7)
    inferer = SliceBySlice(SlidingWindow((8, 9), blend="constant"), neighbors=1)
    summed = inferer(volume, lambda window: window.sum(1, keepdim=True))
    above, below = (volume[..., [max(0, min(6, z + step)) for z in range(7)]] for step in (1, -1))
    torch.testing.assert_close(summed, volume + above + below)


def test_negative_neighbors_are_refused():
    with pytest.raises(ConfigError, match="SliceBySlice: neighbors is -1; use 0 or more"):
        SliceBySlice(SlidingWindow((8, 8)), neighbors=-1)


def test_slice_major_tensors_are_the_same_with_whole_slices_in_memory():
    image = torch.rand(2, 9, 7, 5)
    turned = SliceMajord("image")({"image": image})["image"]
    assert torch.equal(turned, image)
    assert turned[..., 3].numel() * turned.element_size() == 504
    assert turned.stride()[-1] == 2 * 9 * 7
    assert turned[..., 3].is_contiguous()
