"""Which series is chosen, and that every yes and no has its reason in words."""

from dataclasses import replace
from pathlib import Path

import pytest

from medseg.reading import ScanSource
from medseg.reading.dicom import Series, choose, kernel_sharpness

PLAIN = Series(
    source=ScanSource(Path("a"), (), "1.1"),
    modality="CT",
    slices=100,
    frames=0,
    thickness_mm=3.0,
    spacing_mm=(0.7, 0.7, 3.0),
    kernel="B30f",
    contrast="",
    description="",
    orientation="axial",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    study="s1",
    patient="p1",
)


def one(uid="1.1", *, step=3.0, **changes):
    return replace(PLAIN, source=ScanSource(Path("a"), (), uid), spacing_mm=(0.7, 0.7, step), **changes)


def chosen(*series, **options):
    return [choice.series.source.series_uid for choice in choose(series, **options) if choice.chosen]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"orientation": "coronal"}, "coronal, not axial"),
        ({"orientation": "oblique"}, "oblique, not axial"),
        ({"slices": 19}, "19 slices, fewer than 20"),
        ({"thickness_mm": 5.5}, "slices of 5.5 mm, over 5 mm"),
        ({"thickness_mm": 1.0, "step": 10.0}, "slices of 10 mm, over 5 mm"),
        ({"image_type": ("DERIVED", "PRIMARY", "AXIAL")}, r"derived from other images (DERIVED\PRIMARY\AXIAL)"),
        ({"image_type": ("ORIGINAL", "SECONDARY")}, r"derived from other images (ORIGINAL\SECONDARY)"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "MIP")}, r"derived from other images (ORIGINAL\PRIMARY\MIP)"),
        ({"kind": "a localizer"}, "is a localizer, no volume"),
        ({"problems": ("gantry tilt of 12.0 degrees",)}, "gantry tilt of 12.0 degrees"),
        ({"kernel": "B70f"}, "sharp kernel B70f, for bone or lung: choose it yourself if need be"),
    ],
)  # fmt: skip
def test_a_series_is_left_out_for_its_reason(changes, reason):
    (choice,) = choose([one(**changes)])
    assert (choice.chosen, choice.reason) == (False, reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "soft kernel B30f, 3 mm, the only one of its study"),
        ({"slices": 20, "thickness_mm": 5.0, "step": 5.0}, "soft kernel B30f, 5 mm, the only one of its study"),
        ({"thickness_mm": 5.02, "step": 5.0}, "soft kernel B30f, 5.02 mm, the only one of its study"),
        ({"thickness_mm": float("nan"), "kernel": "XYZ"}, "kernel XYZ unknown, 3 mm, the only one of its study"),
        ({"kernel": ""}, "kernel not stated, 3 mm, the only one of its study"),
        ({"modality": "MR", "kernel": ""}, "the only MR volume of its study"),
    ],
)  # fmt: skip
def test_a_series_alone_is_chosen_for_its_reason(changes, reason):
    (choice,) = choose([one(**changes)])
    assert (choice.chosen, choice.reason) == (True, reason)


def test_of_a_study_the_thinnest_soft_series_is_chosen():
    thick, thin, sharp = one("1.1"), one("1.2", thickness_mm=1.0, step=1.0), one("1.3", thickness_mm=0.6, kernel="B60f")
    unknown = one("1.4", thickness_mm=0.5, step=0.5, kernel="XYZ")
    choices = choose([thick, thin, sharp, unknown])
    assert [choice.chosen for choice in choices] == [False, True, False, False]
    assert [choice.reason for choice in choices] == [
        "soft kernel B30f, 3 mm; its study has a thinner one",
        "soft kernel B30f, 1 mm, the thinnest such of its study",
        "sharp kernel B60f; its study has one of a soft kernel",
        "kernel XYZ unknown; its study has one of a soft kernel",
    ]


def test_of_two_as_thin_the_longer_one_is_chosen_then_the_one_with_contrast():
    assert chosen(one("1.1"), one("1.2", slices=120)) == ["1.2"]
    assert chosen(one("1.1"), one("1.2", contrast="Agent")) == ["1.2"]
    assert chosen(one("1.2", number=4), one("1.1", number=5)) == ["1.2"]


def test_the_order_of_the_list_does_not_matter():
    several = [one(f"1.{number}", slices=50 + number % 3, number=number % 2) for number in range(6)]
    assert chosen(*several) == chosen(*reversed(several))


def test_every_study_and_patient_has_its_own_choice():
    others = [one("1.2", study="s2"), one("1.3", patient="p2"), one("1.4", modality="PT", kernel="")]
    assert chosen(one(), *others) == ["1.1", "1.2", "1.3", "1.4"]
    assert chosen(one(), *others, modality="CT") == ["1.1", "1.2", "1.3"]


def test_of_several_mr_series_a_person_must_choose():
    choices = choose([one("1.1", modality="MR", kernel=""), one("1.2", modality="MR", kernel="")])
    assert not any(choice.chosen for choice in choices)
    assert choices[0].reason.endswith("no header says which is wanted: choose yourself")


def test_all_series_takes_every_volume_but_no_derived_or_broken_one():
    odd = [one("1.1", slices=3), one("1.2", kernel="B70f"), one("1.3", orientation="sagittal"), one("1.4", step=9.0)]
    refused = [
        one("1.5", kind="a localizer"),
        one("1.6", problems=("x",)),
        one("1.7", image_type=("DERIVED", "PRIMARY")),
    ]
    assert chosen(*odd, *refused, all_series=True) == ["1.1", "1.2", "1.3", "1.4"]
    assert choose(odd, all_series=True)[0].reason == "every volume is taken"


@pytest.mark.parametrize(
    ("sharpness", "kernels"),
    [
        ("soft", "B10s B20f B30f B31f B40f B45f Br32 Br36d3 Br40f Bf37f I26f I30f I31f\\3 I40f J30s Qr40 D30f"),
        ("soft", "H31s Hc40 Hr38"),
        ("sharp", "B50f B60f B70f B75f B80f Br59 Br64d I50f I70f Bl57 Bl64 U90u H60s T80f"),
        ("soft", "STANDARD SOFT Standard stnd CHST"),
        ("sharp", "BONE LUNG BONEPLUS EDGE DETAIL ULTRA"),
        ("soft", "A B C UB"),
        ("sharp", "D E L YA YB YC YD"),
        ("soft", "FC01 FC03 FC08 FC10 FC11 FC12 FC13 FC18 FC18-H FC21 FC26 FC43 FC64 FC68"),
        ("sharp", "FC30 FC35 FC50 FC51 FC52 FC53 FC56 FC81 FC86"),
        ("soft", "B_SOFT_B B_VSOFT_A SMOOTH"),
        ("sharp", "B_SHARP_C L_LUNG"),
        ("unknown", "XYZ IMR1 F Z 30 BODY"),
    ],
)  # fmt: skip
def test_kernels_of_the_vendors(sharpness, kernels):
    for kernel in kernels.split(" "):
        assert kernel_sharpness(kernel.replace("\\", " ")) == sharpness, kernel


def test_no_kernel_is_unknown():
    assert kernel_sharpness("") == "unknown"
    assert kernel_sharpness("BONE PLUS") == "sharp"
