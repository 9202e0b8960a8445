"""What is said of a mask, and what is not."""

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_cases import AFFINE, RECIPE, SHAPE, ball, reference

from medseg.evaluation.charts import bars, bland_altman, ticks
from medseg.evaluation.comparing import split_and_warnings
from medseg.evaluation.findings import findings
from medseg.metrics import agreement, case_metrics


def told(
    pred: NDArray[np.uint8], label: NDArray[np.uint8], affine: NDArray[np.float64] = AFFINE
) -> dict[str, list[str]]:
    """Kind -> sentences."""
    metrics = case_metrics(pred, label, affine, RECIPE["regions"], lesion_region="tumor")
    found: dict[str, list[str]] = {}
    for one in findings(metrics, pred, label, affine):
        found.setdefault(one["kind"], []).append(one["text"])
    return found


def test_nothing_is_said_of_a_perfect_mask() -> None:
    assert told(reference(0), reference(0)) == {}


def test_a_mask_that_is_too_small_is_not_called_shifted() -> None:
    label = reference(0)
    small = np.where(ball((50, 55, 50), 26), label, 0).astype(np.uint8)  # off center, but no move makes it fit
    assert "shifted" not in told(small, label)


@pytest.mark.parametrize(
    ("axis", "steps", "direction"),
    [(0, 4, "right"), (0, -4, "left"), (1, 4, "front"), (1, -4, "back"), (2, 3, "head"), (2, -3, "feet")],
)
def test_a_shift_is_told_in_the_patients_directions(axis: int, steps: int, direction: str) -> None:
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[12:30, 12:28, 6:14] = 1
    pred = np.roll(label, steps, axis)
    length = abs(steps) * AFFINE[axis, axis]
    assert told(pred, label)["shifted"][0].startswith(f"liver shifted by {length:.0f} mm, mostly to the {direction}")
    flipped = AFFINE @ np.diag([-1.0, -1.0, 1.0, 1.0])
    other = {"right": "left", "left": "right", "front": "back", "back": "front"}.get(direction, direction)
    assert f"mostly to the {other}" in told(pred, label, flipped)["shifted"][0]


def test_specks_and_pieces_that_touch_the_organ_are_no_extra_organs() -> None:
    label = reference(0)
    pred = label.copy()
    pred[40, 36, 2] = 1
    pred[ball((100, 55, 50), 10)] = np.maximum(pred[ball((100, 55, 50), 10)], 1)  # grows out of the liver
    assert "extra_piece" not in told(pred, label)
    pred[ball((120, 100, 20), 14)] = 1
    volume = ball((120, 100, 20), 14).sum() * 0.045
    assert told(pred, label)["extra_piece"] == [f"liver has 1 piece outside the reference's, {volume:.1f} mL"]


def test_a_split_lesion_is_told() -> None:
    label = reference(0)
    pred = label.copy()
    pred[26, :, :][pred[26] == 2] = 1
    assert told(pred, label)["split"] == ["lesion 1 of the reference falls into 2 predicted ones"]


def test_labels_of_no_region_are_named_where_a_region_is_absent() -> None:
    label = reference(0)
    strange = (label > 0).astype(np.uint8) * 7
    [text, _] = told(strange, label)["nothing"]
    assert text.startswith("no liver predicted (it has label values of no region: 7), and there is ")
    assert "(it has label values of no region: 7), but" in told(label, strange)["empty"][0]


def test_pieces_that_nobody_judges_are_not_accused() -> None:
    label = reference(0)
    pred = label.copy()
    piece = ball((120, 100, 20), 14) & (label == 0)
    pred[piece] = 1
    assert "extra_piece" in told(pred, label)
    ignored = np.where(piece, 255, label).astype(np.uint8)
    metrics = case_metrics(pred, ignored, AFFINE, RECIPE["regions"], lesion_region="tumor", ignore_label=255)
    assert findings(metrics, pred, ignored, AFFINE) == []


def test_what_the_model_has_seen_is_never_held_out() -> None:
    parts = {"a": "training", "b": "held_out", "c": "validation"}
    seen = split_and_warnings(parts, ["a", "b", "c", "x"], "test")
    assert seen["held_out"] is False
    assert [text.rpartition(": ")[2] for text in seen["warnings"]] == ["a", "c"]
    assert split_and_warnings(parts, ["b"], "")["held_out"] is True
    assert split_and_warnings(parts, ["deep/b"], "")["held_out"] is True
    assert split_and_warnings(parts, ["b", "x"], "")["held_out"] == "unknown"
    assert split_and_warnings({}, ["b"], "test")["checked"] is False
    assert split_and_warnings(parts, ["b"], "test")["checked"] is True
    assert split_and_warnings(parts, ["b", "x"], "test")["checked"] is False  # one of two is not all


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-3.0, 18.0), (0.013, 0.0131), (-1e4, 3e5), (5.0, 5.0)])
def test_ticks_enclose_what_is_shown_in_few_even_steps(ends: tuple[float, float]) -> None:
    found = ticks(*ends)
    assert found[0] <= ends[0]
    assert found[-1] >= ends[1] - 1e-9
    assert 1 <= len(found) <= 8
    assert np.allclose(np.diff(found), np.diff(found)[:1] if len(found) > 1 else 0)


def test_charts_lie_within_their_picture() -> None:
    pairs = [("a", 10.0, 12.0), ("b", 300.0, 280.0), ("c", 40.0, 90.0)]
    drawn = bland_altman("liver", "mL", pairs, agreement([p for _, p, _ in pairs], [r for _, _, r in pairs]))
    frame = drawn["frame"]
    for x, y, _ in drawn["points"]:
        assert frame["x0"] <= x <= frame["x1"]
        assert frame["y1"] <= y <= frame["y0"]
    assert [name for _, name in drawn["levels"]] == ["bias", "+1.96 SD", "-1.96 SD"]
    (none, half) = bars("found", "recall", [("small", None, ""), ("large", 0.5, "1 of 2")])["bars"]
    assert none["height"] == 0
    assert half["height"] == pytest.approx((frame["y0"] - frame["y1"]) / 2)
