from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from medseg.crf import DenseCRF, clean_up, needs_scan
from medseg.crf import rule as rule_module
from medseg.data import phantom_case
from medseg.data_half import build
from medseg.errors import ConfigError, DataError
from medseg.inference.predictor import Predictor
from medseg.postprocessing import KeepLargest
from medseg.preprocessing import ScanToGrid, Window
from medseg.reading import read_channels
from medseg.transforms import LogitsToLabeld, ReadCased, ScanToGridd
from medseg.writing import write_nifti

AFFINE = np.diag([-1.5, 1.5, 3.0, 1.0])
TO_GRID = ScanToGrid(spacing_mm=(2.0, 2.0, 3.0), intensity=Window(-100, 200))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def box_case() -> tuple[np.ndarray, np.ndarray]:
    """A bright box of 8 x 6 x 4 voxels and its scan, `(17, 15, 11)`, int16."""
    label = np.zeros((17, 15, 11), np.uint8)
    label[4:12, 5:11, 3:7] = 2
    scan = (np.random.default_rng(0).normal(size=label.shape) * 8 + label * 50).astype(np.int16)
    return label, scan


def test_a_noisy_phantom_segmentation_gains_half_of_what_it_lacks() -> None:
    case = phantom_case(1, shape=(56, 48, 32), tumors=3)
    rng = np.random.default_rng(0)
    noisy = case.label.copy()
    flipped = rng.random(noisy.shape) < 0.2
    noisy[flipped] = rng.integers(0, 3, np.count_nonzero(flipped))
    refined = DenseCRF()(noisy, case.affines[0], case.images[0])
    for value, margin in ((1, 0.3), (2, 0.3)):
        before, after = (dice(label == value, case.label == value) for label in (noisy, refined))
        assert after > before + margin
        assert 1 - after < (1 - before) / 2


def test_a_shifted_border_returns_to_the_edge_of_the_scan() -> None:
    label, scan = box_case()
    shifted = np.roll(label, 1, axis=0)
    before, after = dice(shifted > 0, label > 0), dice(DenseCRF()(shifted, AFFINE, scan) > 0, label > 0)
    assert before < 0.9
    assert after > 0.98
    blind = DenseCRF(appearance_weight=0)(shifted, AFFINE, scan)
    assert dice(blind > 0, label > 0) < 0.92  # without the scan there is no edge to return to


def test_label_and_scan_stay_as_they_are() -> None:
    label, scan = box_case()
    for given in (np.roll(label, 1, axis=0), np.zeros_like(label), np.ones_like(label)):
        kept_label, kept_scan = given.copy(), scan.copy()
        given.setflags(write=False)
        refined = DenseCRF()(given, AFFINE, scan)
        assert refined is not given
        assert refined.dtype == np.uint8
        np.testing.assert_array_equal(given, kept_label)
        np.testing.assert_array_equal(scan, kept_scan)


@pytest.mark.parametrize("value", [0, 3])
def test_a_label_of_one_value_has_nothing_to_refine(value: int) -> None:
    label = np.full((5, 4, 3), value, np.uint8)
    np.testing.assert_array_equal(DenseCRF()(label, AFFINE, np.zeros(label.shape, np.int16)), label)


def test_float_scans_that_nobody_may_write_are_taken() -> None:
    label, scan = box_case()
    floats = scan.astype(np.float32)
    floats.setflags(write=False)
    np.testing.assert_array_equal(DenseCRF()(label, AFFINE, floats), DenseCRF()(label, AFFINE, scan))


def test_the_order_of_voxels_in_memory_changes_nothing() -> None:
    label, scan = box_case()
    shifted = np.roll(label, 1, axis=0)
    turned = DenseCRF()(np.asfortranarray(shifted), AFFINE, np.asfortranarray(scan))
    np.testing.assert_array_equal(turned, DenseCRF()(shifted, AFFINE, scan))


def test_axes_stored_in_another_order_change_nothing() -> None:
    label, scan = box_case()
    shifted = np.roll(label, 1, axis=0)
    turned = DenseCRF()(shifted.transpose(2, 0, 1), AFFINE[:, [2, 0, 1, 3]], scan.transpose(2, 0, 1))
    np.testing.assert_array_equal(turned.transpose(1, 2, 0), DenseCRF()(shifted, AFFINE, scan))


def test_voxels_far_from_the_label_stay_as_they_are() -> None:
    label = np.zeros((60, 9, 7), np.uint8)
    label[3:25] = 1
    scan = np.where(label > 0, 100, 0).astype(np.int16)
    scan[40:50] = 100  # looks like the label, but lies 22 mm from it
    refined = DenseCRF(position_mm=200, appearance_weight=30)(label, AFFINE, scan)
    assert refined[40:].any()  # where the kernel reaches, it does spread
    assert not DenseCRF(position_mm=5, appearance_weight=30)(label, AFFINE, scan)[40:].any()


def test_tiles_agree_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    case = phantom_case(2, shape=(56, 48, 32))
    shifted = np.roll(case.label, 1, axis=0)
    rule = DenseCRF(position_mm=8)
    whole = rule(shifted, case.affines[0], case.images[0])
    monkeypatch.setattr(rule_module, "TILE_VOXELS", 5000)
    tiled = rule(shifted, case.affines[0], case.images[0])
    assert np.count_nonzero(whole != shifted) > 100
    assert np.count_nonzero(tiled != whole) < 0.05 * np.count_nonzero(whole != shifted)


def test_tiles_cover_the_box_once_and_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_module, "TILE_VOXELS", 60)
    count = np.zeros((14, 13, 12), int)
    box = (slice(2, 13), slice(0, 13), slice(5, 11))
    for tile in rule_module.tiles(box):
        assert count[tile].size <= 60
        count[tile] += 1
    assert count.sum() == 11 * 13 * 6
    assert (count[box] == 1).all()


def test_a_surer_label_changes_less() -> None:
    label, scan = box_case()
    shifted = np.roll(label, 1, axis=0)
    changes = [
        np.count_nonzero(DenseCRF(label_confidence=confidence)(shifted, AFFINE, scan) != shifted)
        for confidence in (0.9, 1 - 1e-9)
    ]
    assert changes[0] > 20
    assert changes[1] == 0


def test_penalties_go_by_label_value() -> None:
    label, scan = box_case()  # values 0 and 2
    shifted = np.roll(label, 1, axis=0)
    potts_of_0_and_2 = [[0, 9, 1], [9, 9, 9], [1, 9, 0]]
    refined = DenseCRF(compatibility=potts_of_0_and_2)(shifted, AFFINE, scan)
    np.testing.assert_array_equal(refined, DenseCRF()(shifted, AFFINE, scan))
    with pytest.raises(ConfigError, match="compatibility has 2 rows, but there is a label value 2"):
        DenseCRF(compatibility=[[0, 1], [1, 0]])(shifted, AFFINE, scan)


def test_a_scan_of_another_shape_is_refused() -> None:
    label, scan = box_case()
    with pytest.raises(DataError, match=r"the label is \(17, 15, 11\) voxels, the scan \(17, 15, 10\)"):
        DenseCRF()(label, AFFINE, scan[:, :, :10])


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_scan_with_a_voxel_that_is_no_number_is_refused(broken: float) -> None:
    label, scan = box_case()
    holed = scan.astype(np.float32)
    holed[6, 7, 4] = broken
    with pytest.raises(DataError, match="1 voxels of the scan are NaN or infinite; mend it, or remove the rule"):
        DenseCRF()(label, AFFINE, holed)


def test_a_recipe_may_name_the_rule() -> None:
    rule = build({"cleanup": [{"_target_": "medseg.crf.DenseCRF", "position_mm": 3, "iterations": 2}]}, "cleanup::0")
    assert isinstance(rule, DenseCRF)
    with pytest.raises(ConfigError, match=r"cleanup::0: .*position_mm is 0"):
        build({"cleanup": [{"_target_": "medseg.crf.DenseCRF", "position_mm": 0}]}, "cleanup::0")


def test_rules_run_in_order_and_get_the_scan_only_if_they_ask() -> None:
    label, scan = box_case()
    shifted = np.roll(label, 1, axis=0)
    shifted[0, 0, 0] = 2
    rules = [KeepLargest([2]), DenseCRF()]
    assert needs_scan(rules)
    assert not needs_scan(rules[:1])
    by_hand = DenseCRF()(KeepLargest([2])(shifted, AFFINE), AFFINE, scan)
    np.testing.assert_array_equal(clean_up(shifted, AFFINE, rules, scan), by_hand)
    with pytest.raises(ConfigError, match=r"DenseCRF looks at the scan.*set `keep_scan` of ScanToGridd"):
        clean_up(shifted, AFFINE, rules, None)


class Bright(torch.nn.Module):
    """Logits of a threshold, shifted by a voxel: a poor network whose borders lie beside the edges."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bright = torch.roll(image, 1, dims=2) - 0.55
        return torch.cat([-bright, bright], dim=1) * 9


def whole_image(image: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
    return network(image)


@pytest.mark.parametrize("orientation", [np.diag([-1.0, 1, 1]), np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]])])
def test_both_routes_give_the_same_bytes(tmp_path: Path, orientation: np.ndarray) -> None:
    label, scan = box_case()
    affine = np.eye(4)
    affine[:3, :3] = orientation @ np.diag([1.5, 1.5, 3.0])
    write_nifti(scan, affine, tmp_path / "a.nii.gz")
    cleanup = [KeepLargest([1]), DenseCRF()]
    scans = read_channels(str(tmp_path / "a.nii.gz"), ["ct"])
    predicted, plain = (
        Predictor(Bright(), scan_to_grid=TO_GRID, inferer=whole_image, cleanup=rules)(scans)
        for rules in (cleanup, cleanup[:1])
    )
    assert np.any(predicted != plain)  # the rule did something
    assert dice(predicted > 0, label > 0) > dice(plain > 0, label > 0) + 0.03
    prepare = Compose([ReadCased(["ct"], {"background": 0}, 255), ScanToGridd(TO_GRID, keep_scan=True)])
    sample = prepare({"image": str(tmp_path / "a.nii.gz"), "case_id": "a"})
    assert sample["scan"].dtype == torch.int16
    batch = {key: value[None] if isinstance(value, torch.Tensor) else value for key, value in sample.items()}
    with torch.inference_mode():
        done = LogitsToLabeld(cleanup)({**batch, "pred": Bright()(batch["image"].as_tensor())})
    assert done["pred"][0, 0].numpy().tobytes() == predicted.tobytes()


def test_a_case_keeps_its_scan_only_if_asked(tmp_path: Path) -> None:
    _, scan = box_case()
    write_nifti(scan, AFFINE, tmp_path / "a.nii.gz")
    sample = {"image": read_channels(str(tmp_path / "a.nii.gz"), ["ct"]), "case_id": "a"}
    plain = ScanToGridd(TO_GRID)(sample)
    assert "scan" not in plain
    pred = torch.zeros(1, 2, *plain["image"].shape[1:])
    assert LogitsToLabeld([KeepLargest([1])])({**plain, "pred": pred})["pred"].shape == (1, 1, *scan.shape)
    with pytest.raises(ConfigError, match="the prepared case does not have it"):
        LogitsToLabeld([DenseCRF()])({**plain, "pred": pred})
