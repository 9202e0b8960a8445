import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from medseg.data_half import painted_values
from medseg.errors import ConfigError
from medseg.postprocessing import (
    KeepLargest,
    RemoveSmall,
    label_maker,
    logits_to_label,
    painted_regions,
    region_logits_to_label,
    winning_class,
)
from medseg.preprocessing import Grid, ScanToGrid, to_working_axes


def grid_of(shape: tuple[int, int, int], affine: np.ndarray, spacing_mm: tuple[float, float, float]) -> Grid:
    return ScanToGrid(spacing_mm=spacing_mm, intensity=torch.abs).grid(shape, affine)


def test_the_winner_of_interpolated_logits_is_independent_of_how_it_is_found() -> None:
    affine = np.array([[0, 0, -2.7, 30], [1.1, 0, 0, -8], [0, 0.8, 0, 4], [0, 0, 0, 1.0]])
    grid = grid_of((11, 17, 9), affine, (1.7, 1.4, 1.9))
    logits = torch.randn(4, *grid.shape, dtype=torch.float64).float()
    size = grid.turned_shape
    position = np.meshgrid(*(np.arange(n) / s for n, s in zip(size, grid.scale, strict=True)), indexing="ij")
    full = np.stack([map_coordinates(c.double().numpy(), position, order=1, mode="nearest") for c in logits])
    label = logits_to_label(logits, grid)
    assert label.shape == (11, 17, 9)
    assert label.dtype == np.uint8
    assert np.mean(to_working_axes(label, grid) == full.argmax(axis=0)) > 0.999  # float32 ties aside


def test_slabs_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of((11, 17, 9), np.diag([-1.0, 2.0, 3.0, 1.0]), (1.5, 1.5, 1.5))
    logits = torch.randn(3, *grid.shape)
    whole = logits_to_label(logits, grid)
    monkeypatch.setattr("medseg.postprocessing.SLAB_VOXELS", 11 * 17 * 2)
    assert np.array_equal(logits_to_label(logits, grid), whole)


def test_ties_go_to_the_lower_class() -> None:
    channels = torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, 0.0], [0.0, 3.0, 0.0]])
    assert winning_class(channels).tolist() == [0, 1, 0]


def test_regions_are_painted_where_interpolated_probabilities_pass_one_half() -> None:
    affine = np.array([[0, 0, -2.7, 30], [1.1, 0, 0, -8], [0, 0.8, 0, 4], [0, 0, 0, 1.0]])
    grid = grid_of((11, 17, 9), affine, (1.7, 1.4, 1.9))
    logits = torch.randn(3, *grid.shape)
    position = np.meshgrid(
        *(np.arange(n) / s for n, s in zip(grid.turned_shape, grid.scale, strict=True)), indexing="ij"
    )
    full = np.stack([map_coordinates(c.double().numpy(), position, order=1, mode="nearest") for c in logits])
    inside = 1 / (1 + np.exp(-full)) > 0.5
    expected = np.select([inside[2], inside[1], inside[0]], [5, 9, 4], 0)
    label = region_logits_to_label(logits, grid, [4, 9, 5])
    assert label.shape == (11, 17, 9)
    assert label.dtype == np.uint8
    assert np.mean(to_working_axes(label, grid) == expected) > 0.999  # float32 zeros aside


def test_region_slabs_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of((11, 17, 9), np.diag([-1.0, 2.0, 3.0, 1.0]), (1.5, 1.5, 1.5))
    logits = torch.randn(2, *grid.shape)
    whole = region_logits_to_label(logits, grid, [1, 2])
    monkeypatch.setattr("medseg.postprocessing.SLAB_VOXELS", 11 * 17 * 2)
    assert np.array_equal(region_logits_to_label(logits, grid, [1, 2]), whole)


def test_a_later_region_wins_and_no_region_is_background() -> None:
    liver, tumor = torch.tensor([1.0, 1.0, -1.0, 0.0]), torch.tensor([-1.0, 0.1, 2.0, 0.0])
    assert painted_regions([liver, tumor], [1, 2]).tolist() == [1, 2, 2, 0]
    assert painted_regions([tumor, liver], [2, 1]).tolist() == [1, 1, 2, 0]
    assert painted_regions([liver], [7]).tolist() == [7, 7, 0, 0]


def test_a_region_is_painted_with_the_value_no_later_one_has() -> None:
    assert painted_values({"liver": [1, 2], "tumor": [2]}) == [1, 2]
    assert painted_values({"whole": [1, 2, 3], "core": [3, 1], "enhancing": [3], "other": [4]}) == [2, 1, 3, 4]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"tumor": [2], "liver": [1, 2]}, r"regions::tumor has 0 label values .* name larger regions before"),
        ({"liver": [1, 2, 3], "tumor": [2]}, r"regions::liver has 2 label values that no later region has, \[1, 3\]"),
    ],
)
def test_regions_that_painting_cannot_give_back_are_refused(regions: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        painted_values(regions)


def test_region_values_that_are_not_one_a_channel_are_refused() -> None:
    grid = grid_of((3, 4, 5), np.diag([-1.0, -1.0, 1.0, 1.0]), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="2 region channels for 3 label values; give one a channel, in order"):
        region_logits_to_label(torch.zeros(2, *grid.shape), grid, [1, 2, 3])


def test_only_the_largest_piece_of_a_region_stays() -> None:
    label = np.zeros((9, 8, 7), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[2, 2, 2] = 2  # a tumor inside the large piece stays
    label[7:9, 6:8, 5:7] = 1
    label[8, 7, 6] = 2
    before = label.copy()
    kept = KeepLargest([1, 2])(label, np.eye(4))
    assert np.array_equal(kept[:6], label[:6])
    assert not kept[6:].any()
    assert np.array_equal(label, before)


def test_an_empty_label_has_no_largest_piece() -> None:
    assert not KeepLargest([1])(np.zeros((3, 4, 5), np.uint8), np.eye(4)).any()


def test_a_small_lesion_becomes_what_surrounds_it() -> None:
    label = np.ones((9, 8, 7), np.uint8)
    label[1:3, 1:3, 1:3] = 2  # 8 voxels of 0.012 mL = 0.096 mL
    label[6, 6, 5] = 2  # 0.012 mL
    cleaned = RemoveSmall(2, 0.05, becomes=1)(label, np.diag([2.0, 2.0, 3.0, 1.0]))
    assert np.count_nonzero(cleaned == 2) == 8
    assert cleaned[6, 6, 5] == 1


def test_an_activation_has_its_way_to_labels() -> None:
    grid = grid_of((3, 4, 5), np.diag([-1.0, -1.0, 1.0, 1.0]), (1.0, 1.0, 1.0))
    logits = torch.full((2, *grid.shape), -1.0)  # no region; but the second class
    logits[1] += 0.5
    regions = {"liver": [1, 2], "tumor": [2]}
    assert np.all(label_maker("softmax", regions)(logits, grid) == 1)
    assert np.all(label_maker("sigmoid", regions)(logits, grid) == 0)
    assert np.all(label_maker("sigmoid", regions)(logits + 0.75, grid) == 2)
    with pytest.raises(ConfigError, match="activation: is 'tanh'; give 'softmax' or 'sigmoid'"):
        label_maker("tanh", regions)
