"""Pictures: the patient's sides are where the marks say, contours where the mask is, in every orientation."""

from itertools import permutations, product

import numpy as np
import pytest
from PIL import Image

from medseg.geometry import bounding_box
from medseg.report.views import (
    ACROSS,
    COLORS,
    PatientArray,
    Scene,
    around,
    as_data_uri,
    box_to_patient,
    montage,
    outline,
    own_window,
    picture,
    plane_of,
    to_patient,
)

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
SIZE, SPACING = (12, 10, 8), (1.0, 1.5, 3.0)


def scene():
    """A bright cube to the patient's right, front and head, in the patient's axes."""
    voxels = np.zeros(SIZE, np.int16)
    voxels[8:11, 7:9, 5:7] = 100
    return voxels


def stored(voxels, axes, signs):
    """The same patient stored along other axes: array and RAS affine."""
    laid = voxels.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, axis] = sign * SPACING[world]
        affine[world, 3] = 0 if sign > 0 else (SIZE[world] - 1) * SPACING[world]
    return laid, affine


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_the_patient_lies_alike_in_all_48_orientations(axes, signs):
    laid, affine = stored(scene(), axes, signs)
    turned = to_patient(laid, affine)
    np.testing.assert_array_equal(turned.voxels, scene())
    assert turned.spacing_mm == pytest.approx(SPACING)
    assert np.shares_memory(turned.voxels, laid)


def side_of(shown):
    """In which half of the picture the bright cube is: horizontal, vertical."""
    rows, columns = np.nonzero(np.asarray(shown.convert("L")) > 128)
    width, height = shown.size
    return ("left" if columns.mean() < width / 2 else "right", "top" if rows.mean() < height / 2 else "bottom")


@pytest.mark.parametrize(
    ("plane", "index", "expected"),
    [("axial", 5, ("left", "top")), ("coronal", 7, ("left", "top")), ("sagittal", 9, ("left", "top"))],
)
def test_right_anterior_and_superior_are_where_the_marks_say(plane, index, expected):
    image = PatientArray(scene(), SPACING)  # the cube lies to the right, which radiologists show on the left
    shown = picture(Scene(image, (0, 100)), plane, index, marks=False)
    assert side_of(shown) == expected


def test_marks_are_written_at_the_edges_and_the_scale_bar_is_true():
    image = PatientArray(np.zeros((200, 160, 10), np.int16), (1.0, 1.0, 1.0))
    plain = np.asarray(picture(Scene(image, (0, 1)), "axial", 5, size=400, marks=False))
    marked = np.asarray(picture(Scene(image, (0, 1)), "axial", 5, size=400))
    assert not plain.any()
    height, width = marked.shape[:2]
    for region in (
        marked[height // 2 - 10 : height // 2 + 10, :25],
        marked[height // 2 - 10 : height // 2 + 10, -25:],
        marked[:25, width // 2 - 10 : width // 2 + 10],
        marked[-25:, width // 2 - 10 : width // 2 + 10],
    ):
        assert region.max() == 255
    bar = np.flatnonzero(marked[height - 8, : width // 2 - 20, 0] == 255)
    assert bar.size == pytest.approx(50 * 400 / 200, abs=3)  # 50 mm at 2 pixels a mm: 100 mm would be too long


def test_contours_lie_on_the_border_of_the_mask_and_nowhere_else():
    mask = np.zeros(SIZE, bool)
    mask[2:7, 3:8, 2:6] = True
    image = PatientArray(np.zeros(SIZE, np.int16), (1.0, 1.0, 1.0))
    label = PatientArray(np.where(mask, 3, 5).astype(np.uint8), (1.0, 1.0, 1.0))
    scene = Scene(image, (0, 1), label, {"liver": [3, 4]})
    shown = np.asarray(picture(scene, "axial", 4, size=120, marks=False))
    colored = (shown == COLORS[0]).all(axis=2)
    inside = np.kron(plane_of(PatientArray(mask, (1.0, 1.0, 1.0)), "axial", 4)[0], np.ones((10, 10))).astype(bool)
    np.testing.assert_array_equal(colored, outline(inside))
    assert colored.any()
    none = np.asarray(picture(scene, "axial", 0, size=120, marks=False))
    assert not (none == COLORS[0]).all(axis=2).any()


def test_an_outline_is_closed_and_one_pixel_wide():
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    expected = mask.copy()
    expected[2:5, 2:5] = False
    np.testing.assert_array_equal(outline(mask), expected)
    np.testing.assert_array_equal(outline(np.ones((2, 2), bool)), np.ones((2, 2), bool))


def test_voxels_keep_their_proportion():
    image = PatientArray(np.zeros((10, 10, 10), np.int16), (1.0, 2.0, 4.0))
    scene = Scene(image, (0, 1))
    assert picture(scene, "axial", 0, size=200).size == (100, 200)
    assert picture(scene, "coronal", 0, size=200).size == (50, 200)
    assert picture(scene, "sagittal", 0, size=200).size == (100, 200)


def test_each_lesion_is_numbered_in_the_slice():
    numbers = np.zeros((40, 40, 4), np.int32)
    numbers[5:9, 5:9, 1:3], numbers[25:30, 25:30, 1:3] = 1, 2
    image = PatientArray(np.zeros(numbers.shape, np.int16), (1.0, 1.0, 1.0))
    scene = Scene(image, (0, 1), numbers=PatientArray(numbers, image.spacing_mm))
    assert np.asarray(picture(scene, "axial", 1, marks=False)).any()
    assert not np.asarray(picture(scene, "axial", 3, marks=False)).any()


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_a_part_of_a_grid_is_shown_where_it_lies(axes, signs):
    numbers = np.zeros(SIZE, np.int32)
    numbers[3:7, 2:5, 1:6] = np.arange(60).reshape(4, 3, 5)
    laid, affine = stored(numbers, axes, signs)
    box = bounding_box(laid)
    part, whole = to_patient(laid[box], affine, box=box, shape=laid.shape), to_patient(laid, affine)
    assert box_to_patient(box, laid.shape, affine) == bounding_box(whole.voxels)
    for plane, across in ACROSS.items():
        for index in range(SIZE[across]):
            shown, expected = plane_of(part, plane, index), plane_of(whole, plane, index)
            np.testing.assert_array_equal(shown[0], expected[0])
            assert shown[1:] == expected[1:]


def test_a_montage_runs_from_head_to_feet_through_the_region():
    voxels = np.zeros((20, 20, 30), np.int16)
    voxels[:, :, 20:] = 100  # the upper part is bright
    mask = np.zeros(voxels.shape, bool)
    mask[5:15, 5:15, 6:26] = True
    image, label = (PatientArray(each, (1.0, 1.0, 1.0)) for each in (voxels, mask))
    box = around(bounding_box(mask), mask.shape, image.spacing_mm)
    assert box == (slice(0, 20), slice(0, 20), slice(6, 26))
    sheet = montage(Scene(image, (0, 100), label, {"liver": [1]}), box, across=2, down=2, size=60)
    gray = np.asarray(sheet.convert("L"))
    height, width = gray.shape
    assert gray[: height // 2, : width // 2].mean() > 150
    assert gray[height // 2 :, width // 2 :].mean() < 100


def test_a_picture_becomes_text_that_a_page_holds():
    assert as_data_uri(Image.new("RGB", (4, 4))).startswith("data:image/jpeg;base64,/9j/")


def test_the_window_of_an_image_spans_it_and_that_of_an_even_one_is_none_the_less_wide():
    ramp = np.broadcast_to(np.linspace(0, 1000, 200), (200, 200, 200))
    assert own_window(ramp) == pytest.approx((10, 995), abs=20)
    assert own_window(np.full((3, 4, 1), 7, np.int16)) == (7, 8)
