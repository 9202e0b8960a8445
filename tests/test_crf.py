import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medseg.crf import CRFasRNN, DenseCRF, GaussianKernels, mean_field, potts
from medseg.crf.sums import GridSums
from medseg.errors import ConfigError, DataError

SIZES = {2: (9, 7), 3: (5, 4, 3)}
SPACING = {2: (0.8, 1.7), 3: (0.8, 1.7, 3.0)}
PENALTIES = [[0.0, 1.0, 2.0], [0.7, 0.0, 1.3], [2.0, 0.4, -0.1]]


def brute_force(
    unary: np.ndarray,
    image: np.ndarray,
    spacing: tuple[float, ...],
    *,
    widths: tuple[float, float, float],
    weights: tuple[float, float],
    penalties: np.ndarray,
    rounds: int,
    normalized: bool,
) -> np.ndarray:
    """Probabilities of the mean field, voxel by voxel, as the paper writes it."""
    classes, size = len(unary), unary.shape[1:]
    voxels = list(np.ndindex(size))
    kernels = np.zeros((2, len(voxels), len(voxels)))
    for i, a in enumerate(voxels):
        for j, b in enumerate(voxels):
            mm2 = sum(((p - q) * edge) ** 2 for p, q, edge in zip(a, b, spacing, strict=True))
            unlike = sum((float(channel[a]) - float(channel[b])) ** 2 for channel in image)
            kernels[0, i, j] = math.exp(-mm2 / (2 * widths[0] ** 2) - unlike / (2 * widths[1] ** 2))
            kernels[1, i, j] = math.exp(-mm2 / (2 * widths[2] ** 2))
    if normalized:
        for kernel in kernels:
            count = kernel.sum(axis=1)
            for i in range(len(voxels)):
                for j in range(len(voxels)):
                    kernel[i, j] /= math.sqrt(count[i] * count[j])
    energy = np.array([[-unary[(label, *voxel)] for label in range(classes)] for voxel in voxels])

    def normalize(energy: np.ndarray) -> np.ndarray:
        positive = np.exp(-energy)
        return positive / positive.sum(axis=1, keepdims=True)

    probability = normalize(energy)
    for _ in range(rounds):
        changed = energy.copy()
        for i in range(len(voxels)):
            heard = np.zeros(classes)
            for weight, kernel in zip(weights, kernels, strict=True):
                for j in range(len(voxels)):
                    if j != i:
                        heard += weight * kernel[i, j] * probability[j]
            for label in range(classes):
                changed[i, label] += sum(penalties[label, other] * heard[other] for other in range(classes))
        probability = normalize(changed)
    return probability.T.reshape(unary.shape)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_exact_form_is_the_brute_force_mean_field(spatial_dims: int, normalized: bool, channels: int) -> None:
    rng = np.random.default_rng(0)
    size, spacing = SIZES[spatial_dims], SPACING[spatial_dims]
    unary, image = rng.normal(size=(3, *size)), rng.normal(size=(channels, *size)) * 40
    expected = brute_force(
        unary,
        image,
        spacing,
        widths=(4.0, 30.0, 1.5),
        weights=(2.0, 0.7),
        penalties=np.array(PENALTIES),
        rounds=3,
        normalized=normalized,
    )
    kernels = GaussianKernels(4.0, 30.0, 1.5, normalization="symmetric" if normalized else None, method="exact")
    appearance, smoothness = kernels.messages(torch.from_numpy(image), spacing)
    refined = mean_field(
        torch.from_numpy(unary),
        [(appearance, 2.0), (smoothness, 0.7)],
        torch.tensor(PENALTIES, dtype=torch.float64),
        iterations=3,
    )
    assert np.abs(expected - np.exp(unary) / np.exp(unary).sum(0)).max() > 0.1  # the mean field does something
    np.testing.assert_allclose(refined.softmax(dim=0).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("method", ["exact", "auto"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_class_is_the_brute_force_mean_field_in_single_precision(spatial_dims: int, method: str) -> None:
    rng = np.random.default_rng(1)
    size, spacing = SIZES[spatial_dims], SPACING[spatial_dims]
    unary = rng.normal(size=(3, *size)).astype(np.float32)
    image = rng.normal(size=(1, *size)).astype(np.float32) * 60
    expected = brute_force(
        unary,
        image.clip(-50, 50),
        spacing,
        widths=(4.0, 30.0, 1.5),
        weights=(3.0, 1.0),
        penalties=1 - np.eye(3),
        rounds=5,
        normalized=True,
    )
    crf = DenseCRF(
        position_mm=4,
        intensity=30,
        smoothness_mm=1.5,
        appearance_weight=3,
        smoothness_weight=1,
        intensity_range=(-50, 50),
        method=method,
    )
    refined = crf.refine(torch.from_numpy(unary), torch.from_numpy(image), spacing)
    np.testing.assert_allclose(refined.softmax(dim=0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("normalization", ["symmetric", None])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_grid_comes_to_the_exact_form_as_it_gets_finer(
    spatial_dims: int, normalization: str | None, channels: int
) -> None:
    size = {2: (19, 13), 3: (7, 9, 5)}[spatial_dims]
    image, values = torch.rand(channels, *size, dtype=torch.float64) * 90, torch.rand(3, *size, dtype=torch.float64)
    spacing = SPACING[spatial_dims]
    exact = GaussianKernels(9.0, 30.0, 6.0, normalization=normalization, method="exact")
    errors = []
    for resolution in (1.5, 3.0, 16.0):
        grid = dataclasses.replace(exact, method="grid", resolution=resolution)
        pairs = zip(grid.messages(image, spacing), exact.messages(image, spacing), strict=True)
        errors.append([float((a(values) - b(values)).abs().max() / b(values).abs().max()) for a, b in pairs])
    coarse, finer, finest = np.array(errors)
    assert coarse.max() < 0.12
    assert finer[0] < coarse[0] / 2
    assert finest[0] < coarse[0] / 50
    assert finest.max() < 1e-3


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_grid_with_one_cell_a_voxel_is_exact(spatial_dims: int) -> None:
    size, spacing = SIZES[spatial_dims], SPACING[spatial_dims]
    image, values = torch.full((1, *size), 7.0), torch.rand(3, *size)  # one intensity: only places differ
    exact = GaussianKernels(1.5, 30.0, 1.0, method="exact")
    grid = dataclasses.replace(exact, method="grid", resolution=64)
    for a, b in zip(grid.messages(image, spacing), exact.messages(image, spacing), strict=True):
        np.testing.assert_allclose(a(values), b(values), atol=2e-5)


@pytest.mark.parametrize("size", [(301, 7), (5, 149, 2), (3, 2, 149)])
def test_a_long_grid_is_the_product_with_the_whole_kernel(size: tuple[int, ...]) -> None:
    values = torch.rand(2, *size, dtype=torch.float64)
    widths = [1.3 + 0.7 * axis for axis in range(len(size))]
    expected = values.numpy()
    for axis, (n, width) in enumerate(zip(size, widths, strict=True), start=1):
        place = np.arange(n)
        kernel = np.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
        expected = np.moveaxis(np.tensordot(kernel, expected, axes=(1, axis)), 0, axis)
    sums = GridSums(widths, torch.zeros(0, *size, dtype=torch.float64), resolution=99.0)
    np.testing.assert_allclose(sums(values), expected, rtol=1e-7)


@pytest.mark.parametrize("size", [(401, 299), (151, 149, 3)])
def test_sums_on_a_grid_are_their_own_transpose(size: tuple[int, ...]) -> None:
    image = torch.rand(1, *size, dtype=torch.float64) * 9
    one, other = torch.rand(2, 1, *size, dtype=torch.float64)
    sums = GridSums([5.0] * len(size), image)
    torch.testing.assert_close((sums(one) * other).sum(), (sums(other) * one).sum(), rtol=1e-11, atol=0)


def test_work_grows_with_the_voxels_and_not_with_the_length_of_an_axis() -> None:
    counts = []
    for length in (401, 802):
        image = torch.rand(1, length, 48) * 90
        with FlopCounterMode(display=False) as counter:
            DenseCRF().refine(torch.randn(2, length, 48), image, (1.0, 1.0))
        counts.append(counter.get_total_flops())
    assert counts[1] < 2.1 * counts[0]


def test_an_axis_of_one_voxel_costs_nothing() -> None:
    image, values = torch.rand(1, 61, 53) * 90, torch.rand(3, 61, 53)
    flat, thin = GridSums([6.0, 5.0], image / 25), GridSums([6.0, 5.0, 8.0], image[..., None] / 25)
    assert thin.cells == [*flat.cells, 1]
    torch.testing.assert_close(thin(values[..., None])[..., 0], flat(values))


@pytest.mark.parametrize("method", ["exact", "grid"])
def test_a_voxel_hears_nothing_from_itself(method: str) -> None:
    values = torch.zeros(1, 9, 7, dtype=torch.float64)
    values[0, 4, 3] = 1
    image = torch.rand(1, 9, 7, dtype=torch.float64)
    for messages in GaussianKernels(6.0, 0.3, 5.0, method=method).messages(image, (1.0, 1.0)):
        heard = messages(values)[0]
        assert abs(float(heard[4, 3])) < 1e-12
        assert float(heard[4, 4]) > 1e-3


@pytest.mark.parametrize("method", ["exact", "grid"])
def test_halving_all_lengths_changes_nothing(method: str) -> None:
    logits, image = torch.randn(2, 13, 9), torch.randn(1, 13, 9) * 30
    whole = DenseCRF(position_mm=6, smoothness_mm=4, method=method).refine(logits, image, (2.0, 3.0))
    half = DenseCRF(position_mm=3, smoothness_mm=2, method=method).refine(logits, image, (1.0, 1.5))
    torch.testing.assert_close(whole, half)


def test_large_images_take_the_grid() -> None:
    logits, image = torch.randn(2, 70, 65), torch.randn(1, 70, 65) * 30
    auto, grid, exact = (DenseCRF(method=method).refine(logits, image, (1, 1)) for method in ("auto", "grid", "exact"))
    assert torch.equal(auto, grid)
    assert not torch.equal(auto, exact)
    assert (grid.softmax(0) - exact.softmax(0)).abs().mean() < 0.01


def test_a_grid_that_would_not_fit_is_refused() -> None:
    crf = DenseCRF(intensity=1e-3, intensity_range=None, method="grid")
    with pytest.raises(
        ConfigError, match=r"bilateral grid would have \d{9} x 33 x 33 cells.*set intensity and intensity_range"
    ):
        crf.refine(torch.zeros(2, 80, 80), torch.linspace(0, 1e5, 6400).view(1, 80, 80), (1.0, 1.0))


@pytest.mark.parametrize("method", ["exact", "grid"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_layers_gradient_is_the_numerical_one(spatial_dims: int, method: str) -> None:
    size = {2: (4, 3), 3: (3, 2, 2)}[spatial_dims]
    layer = CRFasRNN(spatial_dims, 3, position_mm=5, smoothness_mm=2, iterations=2, method=method).double()
    logits = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    image = torch.rand(1, 1, *size, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def refined(logits: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (logits, image))

    assert torch.autograd.gradcheck(refined, (logits, *layer.parameters()))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradient_reaches_every_parameter_of_the_layer(spatial_dims: int) -> None:
    size = {2: (71, 63), 3: (21, 17, 14)}[spatial_dims]
    layer = CRFasRNN(spatial_dims, 3)
    logits = torch.randn(2, 3, *size, requires_grad=True)
    refined = layer(logits, torch.rand(2, 1, *size))
    assert refined.shape == logits.shape
    (refined.softmax(1)[:, 1] ** 2).sum().backward()
    assert logits.grad is not None
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.all(parameter.grad != 0), name


def test_the_layer_is_the_mean_field_of_each_sample() -> None:
    layer = CRFasRNN(2, 3, spacing_mm=(2.0, 1.0), iterations=5, evaluation_iterations=7).eval()
    logits, image = torch.randn(2, 3, 9, 8), torch.rand(2, 1, 9, 8)
    crf = DenseCRF(
        position_mm=10,
        intensity=0.1,
        smoothness_mm=3,
        appearance_weight=5,
        smoothness_weight=3,
        intensity_range=None,
        iterations=7,
    )
    refined = layer(logits, image)
    for index in range(2):
        torch.testing.assert_close(refined[index], crf.refine(logits[index], image[index], (2.0, 1.0)))


def test_the_layer_learns_to_trust_edges() -> None:
    reference = torch.zeros(1, 12, 10, dtype=torch.long)
    reference[:, 3:9, 2:7] = 1
    image = reference[:, None] * 0.5 + torch.randn(1, 1, 12, 10) * 0.05
    logits = torch.nn.functional.one_hot(reference, 2).movedim(-1, 1) * 1.0 + torch.randn(1, 2, 12, 10)
    layer = CRFasRNN(2, 2)
    torch.nn.init.zeros_(layer.compatibility)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(layer(logits, image), reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert layer.compatibility[0, 1] > layer.compatibility[0, 0]  # what Potts says by hand


@pytest.mark.parametrize("method", ["exact", "grid"])
def test_half_precision_logits_are_refined_in_single_precision(method: str) -> None:
    logits, image = torch.randn(1, 2, 9, 7), torch.rand(1, 1, 9, 7)
    layer = CRFasRNN(2, 2, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = layer(logits.bfloat16(), image)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, layer(logits.bfloat16().float(), image))


def test_a_layer_on_hounsfield_units_says_what_to_set_and_takes_it() -> None:
    logits, image = torch.randn(1, 2, 70, 65), torch.randn(1, 1, 70, 65) * 400
    with pytest.raises(ConfigError, match=r"set intensity and intensity_range in the image's unit"):
        CRFasRNN(2, 2, intensity=1e-4)(logits, image)
    refined = CRFasRNN(2, 2, intensity=25, intensity_range=[-150, 250])(logits, image)
    torch.testing.assert_close(refined, CRFasRNN(2, 2, intensity=25)(logits, image.clamp(-150, 250)))


@pytest.mark.parametrize(
    ("logits", "image"),
    [
        ((2, 4, 9, 7), (2, 1, 9, 7)),  # classes
        ((2, 3, 9, 7), (2, 1, 9, 8)),  # grid
        ((2, 3, 9, 7), (1, 1, 9, 7)),  # batch
        ((2, 3, 9, 7), (2, 9, 7)),  # no channel
        ((2, 3, 9, 7, 5), (2, 1, 9, 7, 5)),  # dimensions
    ],
)
def test_logits_and_images_that_do_not_fit_are_refused_in_one_line(
    logits: tuple[int, ...], image: tuple[int, ...]
) -> None:
    message = f"logits are {logits} and the image {image}; give (B, 3, *spatial) and (B, K, *spatial), in 2D"
    with pytest.raises(DataError, match=re.escape(message)) as refusal:
        CRFasRNN(2, 3)(torch.zeros(logits), torch.zeros(image))
    assert "\n" not in str(refusal.value)


def test_potts_penalizes_unlike_labels() -> None:
    assert potts(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position_mm": 0}, r"position_mm is 0; a kernel needs a positive width"),
        ({"intensity": -1}, r"intensity is -1; a kernel needs a positive width"),
        ({"smoothness_mm": float("nan")}, r"smoothness_mm is nan; a kernel needs"),
        ({"intensity_range": [3, 3]}, r"intensity_range is \[3, 3\]; give a lower and a higher"),
        ({"method": "lattice"}, r"method is 'lattice'; use 'auto', 'exact' or 'grid'"),
        ({"appearance_weight": -1}, r"appearance_weight is -1; give 0 or more"),
        ({"smoothness_weight": -2}, r"smoothness_weight is -2; give 0 or more"),
        ({"iterations": 0}, r"iterations is 0; give 1 or more"),
        ({"label_confidence": 1.0}, r"label_confidence is 1.0; give a probability above 0.5 and below 1"),
        ({"label_confidence": 0.5}, r"label_confidence is 0.5; give a probability above 0.5 and below 1"),
        ({"label_confidence": 0.3}, r"label_confidence is 0.3; give a probability above 0.5"),
        ({"compatibility": [[0, 1], [1]]}, r"compatibility is .*; give a square matrix"),
    ],
)
def test_wrong_settings_of_the_rule_are_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        DenseCRF(**settings)
    assert "\n" not in str(refusal.value)


def test_wrong_settings_of_kernels_and_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="normalization is 'after'; use 'symmetric' or None"):
        GaussianKernels(1, 1, 1, normalization="after")
    with pytest.raises(ConfigError, match=r"resolution is 0.5; a kernel width needs at least 1 cell"):
        GaussianKernels(1, 1, 1, resolution=0.5)
    with pytest.raises(ConfigError, match=r"spacing_mm is \[1, 1\] for 3 axes"):
        DenseCRF().refine(torch.zeros(2, 3, 3, 3), torch.zeros(1, 3, 3, 3), [1, 1])
    with pytest.raises(ConfigError, match=r"spacing_mm is \[1, 1\] for spatial_dims 3"):
        CRFasRNN(3, 2, spacing_mm=[1, 1])
    with pytest.raises(ConfigError, match="1 classes with 5 and 10 iterations"):
        CRFasRNN(2, 1)
