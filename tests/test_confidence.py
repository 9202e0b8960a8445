"""Probabilities that are kept on the way back to the scan's grid, against those of whole stacks in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from medseg.back_to_grid import TILE_VOXELS, LabelMaker, label_maker
from medseg.confidence import LEVELS, Confidence
from medseg.grid import Grid
from medseg.preprocessing import ScanToGrid, to_working_axes

STEP = 1 / LEVELS
OBLIQUE = np.array([[0, 0.3, -2.7, 30], [1.1, 0, 0.2, -8], [0, 0.8, 0, 4], [0, 0, 0, 1.0]])
NESTED = {"liver": [1, 2], "tumor": [2]}


def grid_of(shape: tuple[int, int, int], affine: np.ndarray, spacing_mm: tuple[float, float, float]) -> Grid:
    return ScanToGrid(spacing_mm=spacing_mm, intensity=torch.abs).grid(shape, affine)


ANISOTROPIC = grid_of((90, 41, 13), np.diag([-0.8, -0.8, 5.0, 1.0]), (1.5, 1.5, 1.5))
GRIDS = [
    grid_of((31, 47, 19), OBLIQUE, (1.7, 1.4, 1.9)),
    ANISOTROPIC,
    replace(ANISOTROPIC, shape=(30, 12, 27), start=(6, 5, 10)),
    grid_of((70, 60, 1), np.diag([1.0, 1.0, 1.0, 1.0]), (1.0, 1.0, 1.0)),  # an image
]


def organs(channels: int, shape: tuple[int, ...], *, sharp: float = 3.0) -> torch.Tensor:
    rng = np.random.default_rng(channels)
    logits = np.stack([gaussian_filter(rng.normal(size=shape), 2.0) for _ in range(channels)])
    return torch.from_numpy(sharp * logits / logits.std()).float()


def probabilities(logits: torch.Tensor, grid: Grid, *, sigmoid: bool = False) -> np.ndarray:
    """`(C, X, Y, Z)` at every scan voxel, by SciPy in float64."""
    position = np.meshgrid(
        *(
            np.arange(n) / scale - start
            for n, scale, start in zip(grid.turned_shape, grid.scale, grid.start, strict=True)
        ),
        indexing="ij",
    )
    full = np.stack([map_coordinates(c.double().numpy(), position, order=1, mode="nearest") for c in logits])
    found = 1 / (1 + np.exp(-full)) if sigmoid else np.exp(full - full.max(axis=0))
    return found if sigmoid else found / found.sum(axis=0)


def collected(logits: torch.Tensor, grid: Grid, regions: dict, *, activation: str = "softmax", temperature: float = 1):
    maker = label_maker(activation, regions, temperature=temperature)
    confidence = Confidence(regions, grid, values=maker.values, temperature=temperature)
    half = max(1, grid.shape[0] // 2)
    slabs = [(slice(0, half), logits[:, :half]), (slice(half, grid.shape[0]), logits[:, half:])]
    label = maker.from_slabs([(side, slab) for side, slab in slabs if slab.shape[1]], grid, watch=confidence)
    assert np.array_equal(label, maker(logits, grid))  # watching changes no label
    return label, confidence


@pytest.mark.parametrize("grid", GRIDS, ids=["oblique", "anisotropic", "box", "image"])
@pytest.mark.parametrize(("channels", "sharp"), [(2, 3.0), (3, 0.02), (3, 4.0), (14, 3.0), (14, 30.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_confidence_is_the_winners_softmax(grid: Grid, channels: int, sharp: float, temperature: float) -> None:
    logits = organs(channels, grid.shape, sharp=sharp)
    regions = {f"organ {value}": [value] for value in range(1, channels)}
    label, confidence = collected(logits, grid, regions, temperature=temperature)
    full = probabilities(logits / temperature, grid)
    turned = to_working_axes(label, grid)
    expected = np.take_along_axis(full, turned[None].astype(int), axis=0)[0]
    found = to_working_axes(confidence.levels(label), grid) * STEP
    assert len(np.unique(label)) > 1
    np.testing.assert_allclose(found[turned > 0], expected[turned > 0], atol=1.2 * STEP)
    assert not found[turned == 0].any()
    percent = to_working_axes(confidence.percent(label), grid)
    np.testing.assert_allclose(percent[turned > 0], 100 * expected[turned > 0], atol=1.2)
    means = confidence.means(label)
    for name, values in regions.items():
        inside = np.isin(turned, values)
        assert (name in means) == inside.any()
        if inside.any():
            assert means[name] == pytest.approx(expected[inside].mean(), abs=0.004)


@pytest.mark.parametrize("grid", GRIDS, ids=["oblique", "anisotropic", "box", "image"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_region_has_the_probability_of_all_its_labels(grid: Grid, activation: str) -> None:
    sigmoid = activation == "sigmoid"
    logits = organs(2 if sigmoid else 4, grid.shape)
    regions = NESTED if sigmoid else {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    label, confidence = collected(logits, grid, regions, activation=activation)
    full = probabilities(logits, grid, sigmoid=sigmoid)
    turned = to_working_axes(label, grid)
    means = confidence.means(label)
    for index, (name, values) in enumerate(regions.items()):
        expected = full[index] if sigmoid else full[values].sum(axis=0)
        inside = np.isin(turned, values)
        found = to_working_axes(confidence.levels(label, name), grid) * STEP
        np.testing.assert_allclose(found[inside], expected[inside], atol=1.2 * STEP)
        assert not found[~inside].any()
        assert means[name] == pytest.approx(expected[inside].mean(), abs=0.004)


def test_voxels_that_clean_up_took_or_gave_do_not_count() -> None:
    grid = grid_of((6, 1, 1), np.eye(4), (1.0, 1.0, 1.0))
    logits = torch.tensor([[0.0, 0, 0, 0, 0, 9], [1.0, 2, 3, 0.5, -9, -9], [-9.0, -9, -9, 4, -9, -9]])[:, :, None, None]
    label, confidence = collected(logits, grid, NESTED)
    assert label.ravel().tolist() == [1, 1, 1, 2, 0, 0]
    cleaned = label.copy()
    cleaned[0], cleaned[4], cleaned[3] = 0, 1, 1  # one taken, one given, and the tumor made liver
    liver = probabilities(logits, grid)[1:].sum(axis=0).ravel()
    assert confidence.means(label)["liver"] == pytest.approx(liver[:4].mean(), abs=STEP)
    means = confidence.means(label, cleaned)
    assert means["liver"] == pytest.approx(liver[1:4].mean(), abs=STEP)
    assert "tumor" not in means


def test_only_voxels_beside_background_are_kept() -> None:
    grid = grid_of((128, 128, 128), np.diag([-1.0, -1.0, 1.0, 1.0]), (2.0, 2.0, 2.0))
    logits = torch.full((40, *grid.shape), -20.0)
    logits[0] = 5
    logits[7, 10:20, 10:20, 10:20] = 6
    regions = {f"organ {value}": [value] for value in range(1, 40)}
    label, confidence = collected(logits, grid, regions)
    assert sum(part.values.size for part in confidence._parts) == np.count_nonzero(label) == 19**3
    logits[1] = 30  # sure of it everywhere: a byte a tile
    label, confidence = collected(logits, grid, regions)
    assert sum(part.values.size for part in confidence._parts) <= (128 // TILE_VOXELS + 1) ** 3
    assert confidence.means(label) == {"organ 1": 1.0}


def test_more_labels_than_a_byte_holds_have_their_confidence() -> None:
    grid = grid_of((40, 3, 3), np.eye(4), (1.0, 1.0, 1.0))
    logits = torch.rand(300, *grid.shape) * 9
    regions = {"all": list(range(1, 300)), **{f"organ {value}": [value] for value in range(1, 300)}}
    label, confidence = collected(logits, grid, regions)
    full = probabilities(logits, grid)
    turned = to_working_axes(label, grid)
    expected = np.take_along_axis(full, turned[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(
        to_working_axes(confidence.levels(label), grid) * STEP, expected * (turned > 0), atol=0.02
    )
    assert confidence.means(label)["all"] > 0.9


def test_background_alone_has_no_confidence() -> None:
    grid = GRIDS[1]
    confidence = Confidence(NESTED, grid)
    label = LabelMaker().from_slabs([(slice(0, grid.shape[0]), torch.zeros(3, *grid.shape))], grid, watch=confidence)
    assert not label.any()
    assert confidence.means(label) == {}
    assert not confidence.levels(label).any()
