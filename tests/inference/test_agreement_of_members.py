"""Dice between folds, and between mirrored windows, against maps of whole answers."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from small_bundle import make_bundle, write_scan
from torch import Tensor, nn

from medseg.back_to_grid import label_maker
from medseg.inference import Predictor, SlidingWindow, Tuning
from medseg.inference.agreement import Agreement, lowest
from medseg.inference.mirroring import FoldMean
from medseg.preprocessing import ScanToGrid
from medseg.reading import Scan, read_scan

REGIONS = {"liver": [1, 2], "tumor": [2]}
PATCH = (12, 10, 8)


class Sided(nn.Module):
    """Organ 1 where the image is bright; organ 2 in the first voxels of a window along one axis, whatever it shows."""

    def __init__(self, reach: int, axis: int = 0) -> None:
        super().__init__()
        self.reach, self.axis = reach, axis

    def forward(self, windows: Tensor) -> Tensor:
        bright = (windows[:, :1] > 0).float()
        along = torch.arange(windows.shape[2 + self.axis]) < self.reach
        first = along.view([-1 if axis == self.axis else 1 for axis in range(3)]).expand_as(bright).float()
        return torch.cat([1 - bright, bright * 2, first * bright * 9], dim=1)


def gaussian() -> np.ndarray:
    """Weights of a window, as they are defined."""
    grids = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in PATCH), indexing="ij")
    exponent = sum((grid / (0.125 * n)) ** 2 for grid, n in zip(grids, PATCH, strict=True))
    return np.clip(np.exp(-exponent / 2), 1e-3, None)


def pairwise_dice(labels: list[np.ndarray], values: list[int], weights: np.ndarray) -> float:
    masks = [np.isin(label, values) for label in labels]
    return float(
        np.mean(
            [
                2 * weights[a & b].sum() / (weights[a].sum() + weights[b].sum())
                for a, b in combinations(masks, 2)
                if a.any() or b.any()
            ]
        )
    )


@pytest.fixture
def scan() -> Scan:
    """As large as a window."""
    voxels = np.full(PATCH, -500, np.int16)
    voxels[2:9, 1:8, 2:6] = 50
    return Scan(voxels, np.diag([1.0, 1.0, 1.0, 1.0]))


def predictor(
    network: nn.Module, mirror_axes: tuple[int, ...] = (), *, precision: str = "float32", **tuning
) -> Predictor:
    return Predictor(
        network,
        scan_to_grid=ScanToGrid(spacing_mm=(1, 1, 1), intensity=torch.sign),
        inferer=SlidingWindow(PATCH, precision=precision, mirror_axes=mirror_axes),
        regions=REGIONS,
        tuning=Tuning(**{"layout": "contiguous"} | tuning),
    )


def test_mirrored_windows_are_compared_in_pairs(scan: Scan) -> None:
    network = Sided(5)
    found = predictor(network, (0, 2))
    prepared = found.prepare([scan])
    answer = found.answer(prepared)
    image, labels = prepared.image[None], []
    for axes in ([], [2], [4], [2, 4]):
        logits = network(image.flip(axes)).flip(axes)
        labels.append(logits[0].numpy().argmax(axis=0))
    assert answer.agreement["liver"] == 1.0  # both sides see the same organ
    assert answer.agreement["tumor"] == pytest.approx(pairwise_dice(labels, [2], gaussian()), abs=1e-5)
    assert 0.2 < answer.agreement["tumor"] < 0.8
    assert np.array_equal(answer.label, found.segment(prepared))


def test_folds_are_compared_in_pairs_and_the_worse_of_both_counts(scan: Scan) -> None:
    networks = [Sided(5), Sided(6), Sided(0)]
    folds = FoldMean(networks)
    found = predictor(folds)
    prepared = found.prepare([scan])
    agreement = found.answer(prepared).agreement
    labels = [network(prepared.image[None])[0].numpy().argmax(axis=0) for network in networks]
    assert agreement["tumor"] == pytest.approx(pairwise_dice(labels, [2], gaussian()), abs=1e-5)
    both = predictor(FoldMean(networks), (0,)).answer(prepared).agreement
    images = [prepared.image[None], prepared.image[None].flip(2)]
    seen = [np.concatenate([network(image)[0].numpy().argmax(axis=0) for image in images]) for network in networks]
    between_folds = pairwise_dice(seen, [2], np.concatenate([gaussian()] * 2))
    means = [folds(images[0])[0], folds(images[1]).flip(2)[0]]
    between_sides = pairwise_dice([mean.numpy().argmax(axis=0) for mean in means], [2], gaussian())
    assert both["tumor"] == pytest.approx(min(between_folds, between_sides), abs=1e-5)
    assert lowest([{"liver": 0.9, "tumor": 0.2}, {"liver": 0.8}]) == {"liver": 0.8, "tumor": 0.2}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_network_in_16_bits_is_compared_in_32(scan: Scan, precision: str) -> None:
    told = []
    for each in ("float32", precision):
        found = predictor(FoldMean([Sided(5), Sided(6), Sided(0)]), (0, 2), precision=each)
        told.append(found.answer(found.prepare([scan])).agreement)
    assert told[1] == pytest.approx(told[0], abs=1e-6)


def test_windows_that_only_time_a_layout_are_not_compared(scan: Scan) -> None:
    longer = Scan(np.concatenate([scan.voxels, np.full_like(scan.voxels, 50)], axis=1), scan.affine)
    networks = [Sided(5), Sided(7)]
    found = {layout: predictor(FoldMean(networks), layout=layout, batch_size=1) for layout in ("auto", "contiguous")}
    told = {layout: each.answer(each.prepare([longer])).agreement for layout, each in found.items()}
    assert told["auto"]["tumor"] == pytest.approx(told["contiguous"]["tumor"], abs=1e-6)


def test_a_network_alone_is_compared_with_nothing(scan: Scan) -> None:
    found = predictor(Sided(5))
    assert found.answer(found.prepare([scan])).agreement == {}


def test_a_network_that_does_not_care_for_sides_agrees_with_itself(scan: Scan) -> None:
    found = predictor(Sided(0), (0, 1, 2))
    assert found.answer(found.prepare([scan])).agreement == {"liver": 1.0}  # no tumor anywhere: nothing to say of it


def test_one_member_that_finds_it_alone_is_no_agreement() -> None:
    agreement = Agreement(REGIONS, label_maker("softmax", REGIONS).of_windows, torch.ones(4, 4))
    nothing, something = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    something[1, 2, 1:3] = 1
    for logits in (nothing, something):
        agreement.answer(logits)
    agreement.compare()
    assert agreement.dice() == {"liver": 0.0, "tumor": 0.0}


@pytest.mark.parametrize(("activation", "channels"), [("softmax", 3), ("sigmoid", 2), ("softmax", 300)])
def test_labels_of_windows_are_those_of_their_logits(activation: str, channels: int) -> None:
    logits = torch.randn(2, channels, 5, 4, 3)
    labels = label_maker(activation, REGIONS).of_windows(logits).numpy()
    for item, label in zip(logits.numpy(), labels, strict=True):
        expected = np.select([item[1] > 0, item[0] > 0], [2, 1], 0) if activation == "sigmoid" else item.argmax(axis=0)
        assert np.array_equal(label, expected)


def test_several_windows_weigh_as_they_are_blended(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz", shape=(41, 38, 23))
    bundle = make_bundle(tmp_path / "bundle")
    found = Predictor.from_bundle(bundle, mirroring=True)
    prepared = found.prepare([read_scan(tmp_path / "a.nii.gz")])
    agreement = found.answer(prepared).agreement
    network, inferer = bundle.network().eval(), bundle.build("inferer")
    with torch.inference_mode():
        logits = [
            inferer(prepared.image[None], lambda windows, axes=axes: network(windows.flip(axes)).flip(axes).clone())[0]
            for axes in ([2 + a for a in range(3) if chosen[a]] for chosen in product((0, 1), repeat=3))
        ]
    labels = [each.numpy().argmax(axis=0) for each in logits]
    for name, values in REGIONS.items():  # of blended answers: windows that overlap smooth them a little
        if name in agreement:
            assert agreement[name] == pytest.approx(pairwise_dice(labels, values, np.ones(labels[0].shape)), abs=0.1)
    assert agreement


def test_answers_are_the_same_with_and_without_being_compared(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz")
    found = Predictor.from_bundle(make_bundle(tmp_path / "bundle"), mirroring=True)
    prepared = found.prepare([read_scan(tmp_path / "a.nii.gz")])
    answer = found.answer(prepared)
    assert np.array_equal(answer.label, found.segment(prepared))
    assert answer.confidence is not None
    means = answer.confidence.means(answer.label)
    assert all(1 / 3 < mean <= 1 for mean in means.values())
    assert means


def test_folds_are_compiled_in_one_piece() -> None:
    folds = FoldMean([nn.Conv3d(1, 2, 1), nn.Conv3d(1, 2, 1)]).eval()
    windows = torch.randn(1, 1, 4, 4, 4)
    with torch.inference_mode():
        compiled = torch.compile(folds, dynamic=False, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(windows), folds(windows))
