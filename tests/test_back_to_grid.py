import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from medseg.back_to_grid import (
    LabelMaker,
    Tile,
    label_maker,
    logits_to_label,
    region_logits_to_label,
    tiles,
    winner,
    winning_class,
)
from medseg.data_half import painted_values
from medseg.errors import ConfigError
from medseg.preprocessing import Grid, ScanToGrid, to_working_axes

OBLIQUE = np.array([[0, 0, -2.7, 30], [1.1, 0, 0, -8], [0, 0.8, 0, 4], [0, 0, 0, 1.0]])


def grid_of(shape: tuple[int, int, int], affine: np.ndarray, spacing_mm: tuple[float, float, float]) -> Grid:
    return ScanToGrid(spacing_mm=spacing_mm, intensity=torch.abs).grid(shape, affine)


def organs(channels: int, shape: tuple[int, ...], *, smooth: float = 3.0, seed: int = 0) -> torch.Tensor:
    """Logits of smooth regions, large areas of one class and ragged borders between them."""
    rng = np.random.default_rng(seed)
    logits = np.stack([gaussian_filter(rng.normal(size=shape), smooth) for _ in range(channels)])
    logits = 6 * logits / logits.std() + rng.normal(size=logits.shape) * 0.1
    logits[0] += 3
    return torch.from_numpy(logits).float()


def interpolated(logits: torch.Tensor, grid: Grid) -> np.ndarray:
    """Logits at every scan voxel, axes in working order, by SciPy in float64."""
    position = np.meshgrid(
        *(
            np.arange(n) / scale - start
            for n, scale, start in zip(grid.turned_shape, grid.scale, grid.start, strict=True)
        ),
        indexing="ij",
    )
    return np.stack([map_coordinates(c.double().numpy(), position, order=1, mode="nearest") for c in logits])


def differs(label: np.ndarray, expected: np.ndarray, full: np.ndarray) -> int:
    """Voxels of another class than the largest logit, ties within 1e-4 aside."""
    highest = np.sort(full, axis=0)
    return int(np.count_nonzero((label != expected) & (highest[-1] - highest[-2] > 1e-4)))


GRIDS = [
    grid_of((11, 17, 9), OBLIQUE, (1.7, 1.4, 1.9)),
    grid_of((70, 41, 33), np.diag([-0.8, -0.8, 2.0, 1.0]), (1.5, 1.5, 1.5)),  # fine to coarse, and in z to fine
    grid_of((90, 30, 20), np.diag([0.4, 0.9, 3.0, 1.0]), (2.4, 0.9, 0.7)),
    grid_of((21, 1, 60), np.diag([1.0, 1.0, -1.0, 1.0]), (1.0, 1.0, 1.0)),  # one voxel thin, nothing to interpolate
    replace(
        grid_of((70, 41, 33), np.diag([-0.8, 0.8, 2.0, 1.0]), (1.5, 1.5, 1.5)),
        shape=(20, 12, 27),
        start=(6, 10, 17),
    ),
    replace(grid_of((70, 41, 33), np.diag([-0.8, 0.8, 2.0, 1.0]), (1.5, 1.5, 1.5)), shape=(1, 22, 44), start=(6, 0, 0)),
]


@pytest.mark.parametrize("channels", [2, 3, 14])
@pytest.mark.parametrize("smooth", [0.5, 4.0])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_no_voxel_differs_from_interpolating_all_and_taking_the_largest(
    grid: Grid, channels: int, smooth: float
) -> None:
    logits = organs(channels, grid.shape, smooth=smooth)
    full = interpolated(logits, grid)
    expected = np.zeros(grid.turned_shape, int)
    expected[grid.covered] = full.argmax(axis=0)[grid.covered]
    label = logits_to_label(logits, grid)
    assert label.shape == grid.scan_shape
    assert label.dtype == np.uint8
    assert len(np.unique(label)) > 1
    assert differs(to_working_axes(label, grid), expected, full) == 0


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("thickness", [1, 5, 200])
def test_slabs_of_any_thickness_give_what_one_pass_gives(grid: Grid, axis: int, thickness: int) -> None:
    logits = organs(4, grid.shape)
    whole = logits_to_label(logits, grid)
    memory = torch.empty_like(logits)  # each slab is handed on in the memory of the one before

    def slabs():
        for start in range(0, grid.shape[axis], thickness):
            side = slice(start, min(start + thickness, grid.shape[axis]))
            slab = memory.narrow(axis + 1, 0, side.stop - side.start)
            slab.copy_(logits.narrow(axis + 1, side.start, side.stop - side.start))
            yield side, slab

    assert np.array_equal(LabelMaker().from_slabs(slabs(), grid, axis=axis), whole)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_strips_give_what_one_pass_gives(grid: Grid) -> None:
    logits = organs(4, grid.shape)
    size = grid.shape[2]
    ends = [(0, size // 3 + 1), (size // 3, size)] if size > 3 else [(0, size)]
    found = LabelMaker().from_tiles(
        (
            tile
            for start, stop in ends
            for tile in tiles(
                [(slice(0, grid.shape[0]), logits[..., start:stop])], grid, across=2, within=slice(start, stop)
            )
        ),
        grid,
    )
    assert np.array_equal(found, logits_to_label(logits, grid))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_every_scan_voxel_of_the_box_is_in_one_tile(grid: Grid) -> None:
    count = np.zeros(grid.turned_shape, int)
    for tile in tiles([(slice(0, grid.shape[0]), torch.zeros(1, *grid.shape))], grid):
        count[tile.where] += 1
        assert tile.channel(0).shape == count[tile.where].shape
    expected = np.zeros_like(count)
    expected[grid.covered] = 1
    assert np.array_equal(count, expected)


def test_only_tiles_and_classes_that_can_win_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of((200, 200, 200), np.diag([-1.0, -1.0, 1.0, 1.0]), (2.0, 2.0, 2.0))
    logits = torch.full((105, *grid.shape), -10.0)
    logits[0] = 5
    logits[7, 10:16, 10:16, 10:16] = 6
    asked: list[int] = []
    channel = Tile.channel

    def counted(tile: Tile, index: int) -> torch.Tensor:
        asked.append(index)
        return channel(tile, index)

    monkeypatch.setattr(Tile, "channel", counted)
    label = logits_to_label(logits, grid)
    assert sorted(asked) == [0, 7]
    assert np.count_nonzero(label == 7) == np.count_nonzero(label) == 11**3


def test_a_class_that_is_largest_at_no_corner_can_win_between_them() -> None:
    grid = grid_of((5, 1, 1), np.eye(4), (4.0, 1.0, 1.0))
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [2.0, 2.0]])[:, :, None, None]
    assert grid.shape == (2, 1, 1)
    assert logits_to_label(logits, grid).ravel().tolist() == [0, 0, 2, 1, 1]  # 1.5, 1.5 and 2 in the middle


def test_ties_go_to_the_lower_class() -> None:
    channels = torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, 0.0], [0.0, 3.0, 0.0]])
    assert winning_class(channels).tolist() == [0, 1, 0]
    tile = Tile(channels.view(3, 3, 1, 1), (torch.eye(3), torch.eye(1), torch.eye(1)), (slice(0, 3),) * 3)
    found = winner(tile)
    assert isinstance(found, torch.Tensor)
    assert found.flatten().tolist() == [0, 1, 0]
    assert not logits_to_label(torch.zeros(3, *GRIDS[0].shape), GRIDS[0]).any()


def test_more_classes_than_a_byte_holds_are_told_apart() -> None:
    grid = grid_of((40, 3, 3), np.eye(4), (1.0, 1.0, 1.0))
    logits = torch.rand(300, *grid.shape)  # every class is a candidate
    label = logits_to_label(logits, grid)
    assert label.dtype == np.uint16
    assert label.max() > 255
    assert np.array_equal(to_working_axes(label, grid), logits.numpy().argmax(axis=0))


def test_labels_are_stored_as_nifti_has_them() -> None:
    assert logits_to_label(torch.zeros(2, *GRIDS[0].shape), GRIDS[0]).flags.f_contiguous


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_regions_are_painted_where_interpolated_probabilities_pass_one_half(grid: Grid) -> None:
    logits = organs(3, grid.shape)
    full = interpolated(logits, grid)
    inside = 1 / (1 + np.exp(-full)) > 0.5
    expected = np.zeros(grid.turned_shape, int)
    expected[grid.covered] = np.select([inside[2], inside[1], inside[0]], [5, 9, 4], 0)[grid.covered]
    label = region_logits_to_label(logits, grid, [4, 9, 5])
    assert label.shape == grid.scan_shape
    assert label.dtype == np.uint8
    wrong = (to_working_axes(label, grid) != expected) & (np.abs(full).min(axis=0) > 1e-4)
    assert not wrong.any()


def test_a_later_region_wins_and_no_region_is_background() -> None:
    grid = grid_of((4, 1, 1), np.eye(4), (1.0, 1.0, 1.0))
    liver, tumor = torch.tensor([[1.0, 1.0, -1.0, 0.0], [-1.0, 0.1, 2.0, 0.0]])[:, :, None, None]
    assert region_logits_to_label(torch.stack([liver, tumor]), grid, [1, 2]).ravel().tolist() == [1, 2, 2, 0]
    assert region_logits_to_label(torch.stack([tumor, liver]), grid, [2, 1]).ravel().tolist() == [1, 1, 2, 0]
    assert region_logits_to_label(liver[None], grid, [300]).ravel().tolist() == [300, 300, 0, 0]


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
    with pytest.raises(ConfigError, match="2 region channels for 3 label values; give one a channel, in order"):
        region_logits_to_label(torch.zeros(2, *GRIDS[0].shape), GRIDS[0], [1, 2, 3])


def test_no_slab_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no slab of logits; give those of the whole grid"):
        LabelMaker().from_slabs([], GRIDS[0])


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
@pytest.mark.parametrize(("activation", "temperature"), product(["softmax", "sigmoid"], [1.0, 2.5]))
def test_probabilities_are_those_of_interpolated_logits_on_the_scans_grid(
    grid: Grid, activation: str, temperature: float, tmp_path: Path
) -> None:
    logits = organs(2, grid.shape)
    full = interpolated(logits, grid) / temperature
    maker = label_maker(activation, {"liver": [1, 2], "tumor": [2]}, temperature=temperature)
    path = tmp_path / "case.nii"
    label = maker.from_slabs([(slice(0, grid.shape[0]), logits)], grid, probabilities=path)
    assert np.array_equal(label, maker(logits, grid))
    image = nib.load(path)
    assert image.shape == (*grid.scan_shape, 2)
    np.testing.assert_allclose(image.affine, grid.scan_affine, atol=1e-5)
    assert image.header["descrip"].item().decode() == f"probabilities, temperature {temperature:g}"
    turned = np.stack([to_working_axes(channel, grid) for channel in np.moveaxis(image.get_fdata(), -1, 0)])
    expected = np.exp(full) / np.exp(full).sum(axis=0) if activation == "softmax" else 1 / (1 + np.exp(-full))
    box = (slice(None), *grid.covered)
    np.testing.assert_allclose(turned[box], expected[box], atol=2e-5)
    outside = np.ones(grid.turned_shape, bool)
    outside[grid.covered] = False
    np.testing.assert_allclose(turned[0][outside], activation == "softmax", atol=1e-6)  # background, or no region
    assert not turned[1][outside].any()
    assert [entry.name for entry in tmp_path.iterdir()] == ["case.nii"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")
@pytest.mark.parametrize("place", ["writing", "watching"])
def test_an_error_keeps_no_file_of_probabilities_open(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError(place)

    def watch(tile: Tile, _: object) -> None:
        if any(side.start for side in tile.where):  # not the first: its probabilities are written
            fails()

    if place == "writing":
        monkeypatch.setattr("medseg.probability_file.np.rint", fails)
    grid = GRIDS[1]
    path = tmp_path / "case.nii"
    slabs = [(slice(0, grid.shape[0]), organs(2, grid.shape))]
    with pytest.raises(MemoryError, match=place) as error:
        LabelMaker().from_slabs(slabs, grid, probabilities=path, watch=watch if place == "watching" else None)
    assert error.tb is not None  # holds the frames, as whoever tells of the error does
    assert "case.nii" not in Path("/proc/self/maps").read_text()
    assert not list(tmp_path.iterdir())


def test_an_autocast_around_it_rounds_no_logit() -> None:
    grid = GRIDS[1]
    logits = organs(3, grid.shape, smooth=0.5)
    expected = logits_to_label(logits, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(logits_to_label(logits, grid), expected)


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
