"""Flags: each planted problem raises its own, and a sound result none."""

import numpy as np
import pytest

from medseg.errors import ConfigError
from medseg.report.flags import FlagRules, doubt_flags, flags_of, touches_border

REGIONS = {"liver": [1, 2], "tumor": [2]}
AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])  # a voxel is 1 mL
RULES = FlagRules.read(
    {
        "volume_ml": {"liver": [500, 3500]},
        "pieces_above_ml": {"liver": 50},
        "at_border": ["liver"],
        "none_found": ["liver", "tumor"],
        "removed_above_ml": {"tumor": 2},
        "confidence_below": 0.7,
        "agreement_below": 0.8,
    },
    REGIONS,
)


def sound():
    label = np.zeros((20, 20, 20), np.uint8)
    label[4:15, 4:15, 4:15] = 1
    label[8:10, 8:10, 8:10] = 2
    return label


def flags(label, raw=None, **more):
    return flags_of(label, label if raw is None else raw, AFFINE, regions=REGIONS, rules=RULES, **more)


def test_a_sound_result_raises_no_flag():
    assert flags(sound(), confidence={"liver": 0.9, "tumor": 0.8}, agreement={"liver": 0.95, "tumor": 0.9}) == []


def test_a_tiny_liver_is_flagged():
    label = sound()
    label[:, :, 7:] = 0
    label[6, 6, 6] = 2
    assert flags(label) == ["liver: 363.0 mL, outside the expected 500 to 3500 mL"]


def test_a_second_liver_before_cleanup_is_flagged():
    raw = sound()
    raw[16:20, 0:4, 0:4] = 1
    assert flags(sound(), raw) == ["liver: 2 separate pieces of 50 mL or more before clean-up"]
    raw[16:20, 0:4, 0:4] = 0
    raw[16:18, 0:4, 0:4] = 1  # 32 mL
    assert flags(sound(), raw) == []


def test_a_mask_at_the_border_is_flagged():
    label = np.roll(sound(), -4, axis=2)
    assert flags(label) == ["liver: reaches the border of the scan, so its volume may be too small"]
    inner = (slice(0, 1), slice(1, 2), slice(1, 2))
    assert not touches_border(inner, (1, 3, 3))  # an axis of one voxel has no border
    assert touches_border(inner, (2, 3, 3))
    assert not touches_border(None, (2, 3, 3))


def test_what_was_not_found_is_flagged():
    assert flags(sound() % 2 + (sound() == 2)) == ["tumor: none found"]
    assert flags(np.zeros((4, 4, 4), np.uint8)) == ["liver: none found", "tumor: none found"]


def test_what_cleanup_removed_is_flagged():
    raw = sound()
    raw[5, 5, 5:8] = 2
    assert flags(sound(), raw) == ["tumor: clean-up removed 3.0 mL"]


def test_doubt_is_flagged():
    said = flags(sound(), confidence={"tumor": 0.55}, agreement={"liver": 0.5})
    assert said == ["liver: predictions disagree (Dice 0.50)", "tumor: low confidence (0.55)"]


def test_doubt_may_have_a_threshold_by_region():
    rules = FlagRules.read({"agreement_below": {"liver": 0.7}}, REGIONS)
    low = {"liver": 0.69, "tumor": 0.1}
    assert doubt_flags(REGIONS, rules, confidence=low, agreement=low) == ["liver: predictions disagree (Dice 0.69)"]


def test_without_rules_there_are_no_flags():
    rules = FlagRules.read(None, REGIONS)
    assert flags_of(np.zeros((3, 3, 3)), np.ones((3, 3, 3)), AFFINE, regions=REGIONS, rules=rules) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"volume": {}}, "flags: give rules of volume_ml"),
        ([], "flags: give rules of"),
        ({"none_found": ["spleen"]}, "no region spleen; this recipe has liver, tumor"),
        ({"agreement_below": {"spleen": 0.7}}, "no region spleen; this recipe has liver, tumor"),
        ({"agreement_below": {"liver": 70}}, "flags::agreement_below::liver: is 70; give a share from 0 to 1"),
        ({"agreement_below": "high"}, "flags::agreement_below: is high; give a share from 0 to 1"),
        ({"volume_ml": {"liver": [3500, 500]}}, r"flags::volume_ml::liver: is \[3500, 500\]"),
        ({"volume_ml": {"liver": 500}}, "flags: a rule has another form than it needs"),
        ({"volume_ml": ["liver"]}, "flags: a rule has another form than it needs"),
        ({"at_border": 3}, "flags: a rule has another form than it needs"),
    ],
)
def test_rules_are_checked(content, message):
    with pytest.raises(ConfigError, match=message):
        FlagRules.read(content, REGIONS)
