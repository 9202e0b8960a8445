from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from small_bundle import RECIPE, make_bundle, write_scan
from torch import Tensor, nn

from medseg.back_to_grid import LabelMaker
from medseg.bundle import Bundle
from medseg.cleanup import KeepLargest
from medseg.errors import ConfigError, DataError
from medseg.inference import Predictor, SliceBySlice, SlidingWindow, Tuning
from medseg.inference.predictor import strips
from medseg.preprocessing import ScanToGrid
from medseg.reading import Scan, read_scan


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    write_scan(tmp_path / "a.nii.gz", shape=(41, 38, 23))
    return read_scan(tmp_path / "a.nii.gz")


def whole_logits(bundle: Bundle, image: Tensor, overlap: float = 0.25) -> Tensor:
    """Logits of the whole working grid by MONAI."""
    network = bundle.network()
    with torch.inference_mode():
        return sliding_window_inference(
            image[None], RECIPE["patch_size"], 2, lambda w: network(w).clone(), overlap, "gaussian"
        )[0]


def test_the_stages_give_what_the_call_gives(bundle: Bundle, scan: Scan) -> None:
    predictor = Predictor.from_bundle(bundle)
    prepared = predictor.prepare([scan])
    assert prepared.image.shape == (1, *prepared.grid.shape)
    label = predictor.segment(prepared)
    cleaned, notes = predictor.finish(label, [scan])
    assert np.array_equal(cleaned, predictor([scan]))
    assert cleaned.dtype == np.uint8
    assert not np.array_equal(cleaned, label)
    assert np.array_equal(cleaned, KeepLargest([1, 2])(label, scan.affine))
    for name, value in (("liver", 1), ("tumor", 2)):
        lost_ml = np.count_nonzero((label == value) & (cleaned != value)) * 1.5 * 1.5 * 4 / 1000
        said = [note for note in notes if note.startswith(f"{name}: ")]
        assert [note.endswith(f", {lost_ml:.1f} mL removed") for note in said] == [True] * bool(lost_ml > 0)
    assert notes


def test_labels_are_those_of_monais_logits(bundle: Bundle, scan: Scan) -> None:
    predictor = Predictor.from_bundle(bundle)
    prepared = predictor.prepare([scan])
    expected = LabelMaker()(whole_logits(bundle, prepared.image), prepared.grid)
    label = predictor.segment(prepared)
    assert len(np.unique(expected)) == 3
    assert np.mean(label == expected) > 0.9999  # ties of float32 sums


def test_what_the_body_box_leaves_out_is_noted_and_background(bundle: Bundle, scan: Scan) -> None:
    predictor = Predictor.from_bundle(bundle)
    whole = predictor.prepare([scan])
    box = replace(whole.grid, shape=(20, 16, 22), start=(4, 3, 5), note="body box 20x16x22")
    predictor.scan_to_grid = lambda scans: (whole.image[:, 4:24, 3:19, 5:27], box)
    prepared = predictor.prepare([scan])
    assert prepared.notes == ("body box 20x16x22",)
    label = predictor.segment(prepared)
    inside = np.zeros(label.shape, bool)
    inside[::-1][box.covered] = True  # the scan's x axis runs to the left
    assert not label[~inside].any()
    assert label[inside].any()


@pytest.mark.parametrize("axes", [True, (0,), (1, 2)])
def test_mirroring_averages_over_mirrored_images(bundle: Bundle, scan: Scan, axes: bool | tuple[int, ...]) -> None:
    predictor = Predictor.from_bundle(bundle, mirroring=axes)
    chosen = (0, 1, 2) if axes is True else axes
    assert predictor.inferer.mirror_axes == chosen
    prepared = predictor.prepare([scan])
    grid, image = replace(prepared.grid, shape=(16, 16, 16)), prepared.image[:, :16, :16, :16]  # one window
    network, total = bundle.network(), torch.zeros(())
    with torch.inference_mode():
        for index in range(8):
            dims = [2 + axis for axis in range(3) if index >> axis & 1]
            if all(dim - 2 in chosen for dim in dims):
                total = total + network(image[None].flip(dims)).flip(dims)
    expected = LabelMaker()(total[0] / 2 ** len(chosen), grid)
    found = predictor.segment(replace(prepared, image=image, grid=grid))
    assert np.mean(found == expected) > 0.9999
    assert not np.array_equal(found, Predictor.from_bundle(bundle).segment(replace(prepared, image=image, grid=grid)))


def test_precision_is_the_bundles_unless_another_is_asked_for(tmp_path: Path, bundle: Bundle) -> None:
    assert Predictor.from_bundle(bundle).inferer.precision == "float32"
    assert Predictor.from_bundle(bundle, precision="bfloat16").inferer.precision == "bfloat16"
    checked = make_bundle(tmp_path / "checked", precision_check={"precision": "bfloat16", "passed": True})
    assert Predictor.from_bundle(checked).inferer.precision == "bfloat16"
    assert Predictor.from_bundle(checked, precision="float32").inferer.precision == "float32"
    failed = make_bundle(tmp_path / "failed", precision_check={"precision": "bfloat16", "passed": False})
    assert Predictor.from_bundle(failed).inferer.precision == "float32"
    with pytest.raises(ConfigError, match="precision is 'int8'; use 'float32', 'bfloat16' or 'float16'"):
        Predictor.from_bundle(bundle, precision="int8")


def test_less_memory_gives_the_same_labels_and_ends(bundle: Bundle, scan: Scan) -> None:
    predictor = Predictor.from_bundle(bundle, tuning=Tuning(batch_size=5))
    prepared = predictor.prepare([scan])
    expected = predictor.segment(prepared)
    said = []
    while step := predictor.less_memory():
        said.append(step)
        assert np.mean(predictor.segment(prepared) == expected) > 0.9999
    assert said == [
        "windows in batches of 2",
        "windows in batches of 1",
        "slabs in 2 strips",
        "slabs in 4 strips",
        "slabs in 8 strips",
    ]
    assert predictor.less_memory() is None


def test_a_slice_by_slice_predictor_has_less_memory_too(scan: Scan) -> None:
    predictor = Predictor(
        nn.Conv2d(1, 2, 3, padding=1),
        scan_to_grid=ScanToGrid(spacing_mm=(2, 2, 3), intensity=lambda image: image / 100),
        inferer=SliceBySlice(SlidingWindow((16, 16), batch_size=2)),
        tuning=Tuning(layout="contiguous"),
    )
    prepared = predictor.prepare([scan])
    predictor._batch_size = 2
    expected = predictor.segment(prepared)
    with torch.inference_mode():
        logits = predictor.inferer(prepared.image[None], predictor.network)[0]
    assert np.mean(LabelMaker()(logits, prepared.grid) == expected) > 0.9999
    assert predictor.less_memory() == "windows in batches of 1"
    assert predictor.less_memory() is None
    assert np.mean(predictor.segment(prepared) == expected) > 0.9999


@pytest.mark.parametrize(("size", "count"), [(1, 4), (2, 2), (7, 3), (64, 8), (5, 8)])
def test_strips_share_their_end_voxels_and_cover_all(size: int, count: int) -> None:
    found = strips(size, count)
    assert len(found) <= count
    assert (found[0].start, found[-1].stop) == (0, size)
    assert all(after.start == before.stop - 1 for before, after in pairwise(found))
    assert all(strip.stop - strip.start > 1 for strip in found) or size == 1


def test_a_plain_inferer_and_label_maker_will_do(scan: Scan) -> None:
    class Bright(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([image * 0, image], dim=1)

    predictor = Predictor(
        Bright(),
        scan_to_grid=ScanToGrid(spacing_mm=(1.5, 1.5, 4), intensity=lambda image: image),
        inferer=lambda image, network: network(image),
    )
    assert np.array_equal(predictor([scan]), scan.voxels > 0)


def test_an_answer_that_is_no_number_is_refused(scan: Scan) -> None:
    class Broken(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.cat([image, image / 0 * 0], dim=1)

    for inferer in (SlidingWindow((16, 16, 16)), lambda image, network: network(image)):
        predictor = Predictor(
            Broken(), scan_to_grid=ScanToGrid(spacing_mm=(3, 3, 4), intensity=torch.abs), inferer=inferer
        )
        with pytest.raises(DataError, match="the network's answer is not finite; run it with --precision float32"):
            predictor([scan])


def test_probabilities_are_written_beside_the_labels(tmp_path: Path, scan: Scan) -> None:
    bundle = make_bundle(tmp_path / "warm", temperature=2.0)
    predictor = Predictor.from_bundle(bundle)
    label = predictor.segment(predictor.prepare([scan]), probabilities=tmp_path / "p.nii")
    stored = np.moveaxis(nib.load(tmp_path / "p.nii").get_fdata(), -1, 0)
    assert stored.shape == (3, *scan.voxels.shape)
    assert np.abs(stored.sum(axis=0) - 1).max() < 0.01
    clear = np.sort(stored, axis=0)
    clear = clear[-1] - clear[-2] > 0.002
    assert np.array_equal(stored.argmax(axis=0)[clear], label[clear])
    cold = Predictor.from_bundle(make_bundle(tmp_path / "cold"))
    cold.segment(cold.prepare([scan]), probabilities=tmp_path / "q.nii")
    sharp = np.moveaxis(nib.load(tmp_path / "q.nii").get_fdata(), -1, 0)
    odds, sharper = (np.log(np.maximum(p[1], 1e-3) / np.maximum(p[0], 1e-3)) for p in (stored, sharp))
    some = np.abs(sharper) < 3
    np.testing.assert_allclose(odds[some], sharper[some] / 2, atol=0.05)
