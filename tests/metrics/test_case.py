import json
import re
from pathlib import Path

import numpy as np
import pytest
from label_pairs import PAIRS, REGIONS
from scipy.spatial.transform import Rotation

from medseg.metrics import CaseMetrics, average_distance, case_metrics, hausdorff, surface_dice, surface_distances

SPOT = {"spot": [1]}


def spot(*corner, shape=(9, 8, 7)):
    label = np.zeros(shape, np.uint8)
    if corner:
        label[tuple(slice(start, start + 2) for start in corner)] = 1
    return label


def test_surfaces_of_a_case_are_those_of_its_masks():
    for pair in PAIRS[::7]:
        case = case_metrics(pair.pred, pair.reference, pair.spacing, REGIONS, tolerances_mm=[1.5])
        for name, values in REGIONS.items():
            if case.regions[name]["empty"] != "neither":
                continue
            for kind, definition in (("", "voxel"), ("_subvoxel", "subvoxel")):
                masks = np.isin(pair.pred, values), np.isin(pair.reference, values)
                distances = surface_distances(*masks, pair.spacing, definition=definition)
                found = case.regions[name]
                assert found[f"hausdorff{kind}_mm"] == pytest.approx(hausdorff(distances))
                assert found[f"hd95{kind}_mm"] == pytest.approx(hausdorff(distances, percentile=95))
                assert found[f"assd{kind}_mm"] == pytest.approx(average_distance(distances))
                assert found[f"nsd{kind}_1.5mm"] == pytest.approx(surface_dice(distances, 1.5))


def test_no_number_is_ever_nan_or_infinite():
    for pair in PAIRS:
        probabilities = np.stack([pair.pred == value for value in range(3)]).astype(np.float32)
        case = case_metrics(
            pair.pred, pair.reference, pair.spacing, REGIONS, lesion_region="tumor", probabilities=probabilities
        )
        assert CaseMetrics.from_json(case.to_json()) == case  # which refuses nan and infinity
        assert all(value is not None for name, value in case.row().items() if name.endswith("_all")), pair.name


@pytest.mark.parametrize(
    ("pred", "reference", "empty", "by_cases_that_have_it", "by_all_cases"),
    [
        (spot(), spot(), "both", (None, None, None, None), (1, 1, 0, 1)),
        (spot(1, 1, 1), spot(), "reference", (None, None, None, None), (0, 0, "diagonal", 0)),
        (spot(), spot(1, 1, 1), "pred", (0, None, None, 0), (0, 0, "diagonal", 0)),
        (spot(1, 1, 1), spot(1, 1, 1), "neither", (1, 1, 0, 1), (1, 1, 0, 1)),
    ],
)
def test_what_is_missing_counts_by_two_rules(pred, reference, empty, by_cases_that_have_it, by_all_cases):
    found = case_metrics(pred, reference, (3, 4, 12), SPOT).regions["spot"]
    names = ("dice", "precision", "hd95_mm", "nsd_2mm")
    diagonal = np.linalg.norm(np.multiply(pred.shape, (3, 4, 12)))
    assert found["empty"] == empty
    assert tuple(found[name] for name in names) == by_cases_that_have_it
    expected = [diagonal if value == "diagonal" else value for value in by_all_cases]
    assert [found[f"{name}_all"] for name in names] == pytest.approx(expected)


def test_a_region_that_was_not_annotated_is_not_judged():
    label = np.where(spot(2, 2, 2) == 1, 2, spot(5, 5, 4)).astype(np.uint8)
    case = case_metrics(label, label, (1, 1, 1), REGIONS, labeled=["liver"], lesion_region="tumor")
    assert list(case.regions) == ["liver"]
    assert (case.lesions, case.lesion_rows, case.overall) == (None, [], {})
    assert not any(name.startswith(("tumor", "lesion")) for name in case.row())
    assert case.settings["labeled"] == ["liver"]


def test_ignored_voxels_are_outside_in_both_maps():
    reference, pred = spot(1, 1, 1), spot(2, 1, 1)
    reference[3:, :, :] = 255
    cleared = pred.copy()
    cleared[3:] = 0
    expected = case_metrics(cleared, np.where(reference == 255, 0, reference), (1, 1, 1), SPOT, lesion_region="spot")
    case = case_metrics(pred, reference, (1, 1, 1), SPOT, ignore_label=255, lesion_region="spot")
    assert case.regions["spot"]["tn"] == expected.regions["spot"]["tn"] - 6 * 8 * 7
    assert case.regions["spot"]["fp"] == 0
    same = {name: value for name, value in case.row().items() if name not in ("spot_tn", *case.overall)}
    assert same == {name: expected.row()[name] for name in same}


def test_ignored_background_leaves_the_voxels_of_classes():
    reference, pred = spot(1, 1, 1), spot(2, 1, 1)
    case = case_metrics(pred, reference, (1, 1, 1), SPOT, ignore_label=0)
    assert case.confusion == [[0, 0], [4, 4]]


def test_a_negative_ignore_label_is_taken():
    reference = spot(1, 1, 1).astype(np.int16)
    reference[5:] = -1
    assert case_metrics(spot(1, 1, 1), reference, (1, 1, 1), SPOT, ignore_label=-1).regions["spot"]["dice"] == 1


def test_an_affine_and_its_spacing_give_the_same_distances_however_it_is_turned():
    pair = next(pair for pair in PAIRS if pair.pred.ndim == 3 and len(set(pair.spacing)) == 3)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [20, -35, 70], degrees=True).as_matrix() @ np.diag(pair.spacing)
    turned[:3, 3] = 5, -60, 700
    plain = case_metrics(pair.pred, pair.reference, pair.spacing, REGIONS, lesion_region="tumor")
    oblique = case_metrics(pair.pred, pair.reference, turned, REGIONS, lesion_region="tumor")
    flipped = case_metrics(pair.pred, pair.reference, np.diag([-1, 1, -1, 1]) @ turned, REGIONS)
    assert oblique.row() == pytest.approx(plain.row())
    assert flipped.regions["liver"] == pytest.approx(plain.regions["liver"])
    first, turned_first = plain.lesion_rows[0], oblique.lesion_rows[0]
    index = np.array([first["x_mm"], first["y_mm"], first["z_mm"]]) / pair.spacing
    assert [turned_first[name] for name in ("x_mm", "y_mm", "z_mm")] == pytest.approx(
        turned[:3, :3] @ index + turned[:3, 3]
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_measured_as_the_image_it_is(axis, order):
    random = np.random.default_rng(1)
    pred, reference = random.integers(0, 3, (2, 9, 7), dtype=np.uint8)
    spacing = [2.0, 3.0]
    flat = case_metrics(pred, reference, spacing, REGIONS, lesion_region="tumor")
    affine = np.diag([*np.insert(spacing, axis, 5.0), 1.0])
    maps = (np.asarray(np.expand_dims(label, axis), order=order) for label in (pred, reference))
    thick = case_metrics(*maps, affine, REGIONS, lesion_region="tumor")
    assert thick.row() == pytest.approx(flat.row())
    assert flat.regions["liver"]["pred_mm2"] == (pred > 0).sum() * 6
    kept = [name for place, name in enumerate(("x_mm", "y_mm", "z_mm")) if place != axis]
    for one, other in zip(thick.lesion_rows, flat.lesion_rows, strict=True):
        assert [one[name] for name in kept] == pytest.approx([other["x_mm"], other["y_mm"]])


def test_an_image_without_mm_is_measured_in_pixels():
    pred, reference = spot(2, 1, shape=(9, 8)), spot(1, 1, shape=(9, 8))
    case = case_metrics(
        pred[..., None], reference[..., None], np.eye(4), SPOT, lesion_region="spot", tolerances_mm=[1], unit="px"
    )
    found = case.regions["spot"]
    assert (found["pred_px"], found["area_error_px"], found["hausdorff_px"], found["nsd_1px"]) == (4, 0, 1, 1)
    assert not any("mm" in name or name.endswith("_ml") for name in case.row())
    assert case.lesion_rows[0]["area_px"] == 4
    assert (case.lesion_rows[0]["x_px"], case.lesion_rows[0]["y_px"]) == (1.5, 1.5)


def test_every_name_of_a_row_is_defined_in_the_manual():
    manual = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    defined = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", manual, flags=re.DOTALL)))
    label = spot(1, 1, 1)
    probabilities = np.stack([1 - label, label]).astype(float)
    case = case_metrics(
        label, label, (1, 1, 1), SPOT, lesion_region="spot", probabilities=probabilities, tolerances_mm=[2]
    )
    names = {name.removeprefix("spot_").removesuffix("_all") for name in case.row()}
    assert not names - defined
    assert not {name for row in case.lesion_rows for name in row} - defined


def test_only_the_surfaces_asked_for_are_measured():
    names = case_metrics(spot(1, 1, 1), spot(1, 1, 1), (1, 1, 1), SPOT, definitions=["voxel"]).row()
    assert "spot_hd95_mm" in names
    assert not any("subvoxel" in name for name in names)


def test_the_maps_are_not_changed():
    pred, reference = spot(1, 1, 1), spot(2, 1, 1)
    reference[8] = 255
    before = pred.copy(), reference.copy()
    case_metrics(pred, reference, (1, 1, 1), SPOT, ignore_label=255, lesion_region="spot")
    np.testing.assert_array_equal((pred, reference), before)


def test_a_case_is_written_as_plain_json():
    case = case_metrics(spot(1, 1, 1), spot(2, 1, 1), (1, 1, 1), SPOT, lesion_region="spot")
    assert json.loads(case.to_json())["regions"]["spot"]["dice"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((spot(), spot(shape=(9, 8, 6)), (1, 1, 1), SPOT), r"pred is \(9, 8, 7\) and reference \(9, 8, 6\); bring the"),
        (
            (np.zeros(3, int), np.zeros(3, int), (1,), SPOT),
            r"the maps are \(3,\); give label maps \(X, Y\) or \(X, Y, Z\)",
        ),
        (
            (np.zeros((3, 3)), np.zeros((3, 3), int), (1, 1), SPOT),
            "pred has voxels of type float64; give label values as",
        ),
        (
            (spot(), spot(), (1, 1), SPOT),
            r"affine_or_spacing is \(2,\) for maps \(9, 8, 7\); give 3 voxel edge lengths",
        ),
        ((spot(), spot(), (1, 1, 0), SPOT), "affine_or_spacing has an axis without length"),
        ((spot(), spot().astype(np.int8) - 1, (1, 1, 1), SPOT), "a label map has negative values"),
        (
            (spot(), spot(), (1, 1, 1), {"all": range(1, 256)}),
            "the regions have 256 label values; 254 can be told apart",
        ),
    ],
)
def test_maps_that_cannot_be_judged_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        case_metrics(*arguments)


@pytest.mark.parametrize("setting", [{"lesion_region": "tumor"}, {"labeled": ["spot", "tumor"]}])
def test_a_region_that_does_not_exist_is_refused(setting):
    with pytest.raises(
        ValueError, match=f"{next(iter(setting))} names 'tumor', which is no region; the regions are spot"
    ):
        case_metrics(spot(), spot(), (1, 1, 1), SPOT, **setting)
