"""Settings of masks that contradict the labels or each other."""

import pytest

from medseg.errors import ConfigError
from medseg.reading import MaskCode

LABELS = {"background": 0, "liver": 1, "tumor": 2}
WRONG = [
    ({"values": {"liver": 1, "tumor": 2}, "colors": {}}, "mask_values and mask_colors are both set"),
    ({"values": {"liver": 100}}, "mask_values: nothing for the label 'tumor'; add it"),
    (
        {"values": {"liver": 100, "tumor": 200, "cyst": 3}},
        "mask_values: 'cyst' is no label; known are background, liver",
    ),
    ({"values": {"liver": 100, "tumor": 100}}, "mask_values: 'tumor' and another label are both 100"),
    ({"values": {"liver": 0, "tumor": 100}}, "mask_values: 'background' and another label are both 0"),
    ({"values": {"liver": "1", "tumor": 2}}, "mask_values: 'liver' is '1'; give a whole number from 0 to 65535"),
    ({"colors": {"liver": [1, 2], "tumor": [3, 4, 5]}}, r"mask_colors: 'liver' is \[1, 2\]; give \[red, green, blue\]"),
    ({"colors": {"liver": [1, 2, 300], "tumor": [3, 4, 5]}}, "each from 0 to 255"),
    ({"values": {"liver": 100, "tumor": 200}, "threshold": 150}, "mask_threshold: 150 must lie between .* two labels"),
    ({"colors": {"liver": [9, 9, 9], "tumor": [3, 4, 5]}, "threshold": 1}, "mask_threshold: needs gray masks"),
    ({"values": {"liver": 1, "tumor": 2, "ignore": 9}}, "'ignore' is no label"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_contradicting_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MaskCode(LABELS, **settings)


def test_a_threshold_outside_both_values_is_refused():
    with pytest.raises(ConfigError, match=r"mask_threshold: 256 must lie between .* got \[255, 0\]"):
        MaskCode({"background": 0, "lesion": 1}, values={"lesion": 255}, threshold=256)
