import json
import re
from dataclasses import replace

import numpy as np
import pytest

from medseg.inference.training_range import outside_range, training_range
from medseg.reading import Header, Scan

PLAIN = np.diag([-0.8, -0.8, 2.5, 1.0])


def scan(affine=PLAIN, shape=(40, 30, 20), *, offset=0, seed=0):
    voxels = np.random.default_rng(seed).normal(40 + offset, 100, shape).astype(np.int16)
    return Scan(voxels, np.asarray(affine, dtype=float))


@pytest.fixture
def known():
    cases = [[scan()], [scan(np.diag([-0.6, -0.6, 5.0, 1.0]), seed=1)]]
    return json.loads(json.dumps(training_range(cases, channels=["ct"], modality="CT")))


def test_the_range_is_that_of_all_cases_along_the_patients_axes(known):
    assert known["spacing_mm"] == {"low": [0.6, 0.6, 2.5], "high": [0.8, 0.8, 5.0]}
    assert known["field_of_view_mm"] == {"low": [24.0, 18.0, 50.0], "high": [32.0, 24.0, 100.0]}
    assert (known["cases"], known["channels"], known["modality"]) == (2, ["ct"], "CT")
    low, high = known["percentiles"]["ct"]["50"]
    assert 35 < low <= high < 45  # the median of the noise is 40


def test_headers_alone_widen_the_lengths_and_not_the_intensities():
    wide = Header((50, 60, 70), np.diag([1.0, 1.0, 7.0, 1.0]), "int16", 0)
    alone = training_range([[scan()]], channels=["ct"])
    found = training_range([[scan()]], channels=["ct"], headers=[wide])
    assert (found["cases"], found["percentiles"]) == (2, alone["percentiles"])
    assert found["spacing_mm"] == {"low": [0.8, 0.8, 2.5], "high": [1.0, 1.0, 7.0]}
    assert found["field_of_view_mm"]["high"] == [50.0, 60.0, 490.0]


def test_a_dicom_series_of_another_modality_is_flagged(known):
    mr = replace(scan(seed=7), modality="MR")
    assert outside_range([mr], known) == ["unlike the training scans: modality MR, trained on CT"]
    assert outside_range([replace(mr, modality="CT")], known) == []
    assert outside_range([mr], known | {"modality": ""}) == []


def test_a_scan_like_those_has_no_flag(known):
    assert outside_range([scan(seed=7)], known) == []


def test_a_scan_stored_in_another_order_of_axes_has_no_flag(known):
    turned = np.array([[0, 0, -0.8, 0], [0, 0.8, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]])
    assert outside_range([scan(turned, (20, 30, 40))], known) == []


@pytest.mark.parametrize(
    ("affine", "offset", "flag"),
    [
        (np.diag([-0.8, -0.8, 8.0, 1.0]), 0, "spacing along head 8 mm, trained on 2.5 to 5 mm"),
        (np.diag([-0.8, -0.8, 0.9, 1.0]), 0, "field of view along head 18 mm, trained on 50 to 100 mm"),
        (PLAIN, 400, "trained on .* HU"),
    ],
)
def test_an_unlike_scan_is_flagged_by_what_is_unlike(known, affine, offset, flag):
    flags = outside_range([scan(affine, offset=offset)], known)
    assert any(re.fullmatch(f"unlike the training scans: .*{flag}", found) for found in flags)


def test_lengths_a_little_outside_are_no_flag(known):
    assert outside_range([scan(np.diag([-0.85, -0.85, 2.4, 1.0]))], known) == []


def test_a_model_that_does_not_tell_and_an_image_without_mm_have_no_flag(known):
    assert outside_range([scan(offset=999)], None) == []
    image = Scan(np.zeros((5, 5, 1), np.uint8), np.eye(4), unit="px")
    assert outside_range([image], known) == []
