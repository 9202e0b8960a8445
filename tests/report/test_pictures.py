import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from medseg.report import pictures
from medseg.report.pictures import PREDICTION, REFERENCE, curves_picture, overlay_picture, slice_to_show

RAS_AFFINE = np.array([[2.0, 0, 0, -20.0], [0, 3.0, 0, -30.0], [0, 0, 4.0, 5.0], [0, 0, 0, 1]])
SHAPE = (30, 20, 9)  # 60 x 60 mm


def turned(voxels, code):
    """The same volume stored along other axes, by nibabel."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    return apply_orientation(voxels, change), RAS_AFFINE @ inv_ornt_aff(change, voxels.shape)


@pytest.fixture
def case():
    image = np.zeros(SHAPE, np.int16)
    image[22:28, 14:18, 4] = 100  # right, front: 12 x 12 mm
    label, pred = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    label[4:24, 4:14, 1:8] = 1
    label[10:16, 6:10, 4] = 2
    pred[5:25, 4:14, 1:8] = 1
    return image, label, pred


def draw(case, path, code="RAS", **options):
    image, label, pred = (turned(voxels, code) for voxels in case)
    options = {"title": "", "window": (0, 100)} | options
    overlay_picture(image[0], label[0], pred[0], image[1], path, **options)
    return imread(path)[..., :3]


def near(picture, color):
    return np.abs(picture - to_rgb(color)).max(axis=-1) < 0.1


def test_right_of_the_patient_is_on_the_left_and_front_is_up(case, tmp_path):
    picture = draw(case, tmp_path / "a.png")
    blob = (picture.min(axis=-1) > 0.99) & (np.arange(len(picture))[:, None] > 60)  # below the white margin
    black = np.argwhere(picture.max(axis=-1) < 0.01)
    (top, left), (bottom, right) = black.min(axis=0), black.max(axis=0)
    rows, columns = np.nonzero(blob[top:bottom, left : (left + right) // 2])
    assert rows.mean() < (bottom - top) / 2
    assert columns.size > 2000


@pytest.mark.parametrize("code", ["LPS", "PIR", "ASL", "SAR"])
def test_picture_is_the_same_however_the_scan_is_stored(case, tmp_path, code):
    assert np.array_equal(draw(case, tmp_path / "a.png"), draw(case, tmp_path / "b.png", code))


def test_edges_are_in_true_proportion(case, tmp_path):
    picture = draw((case[0], np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)), tmp_path / "a.png")
    black = np.argwhere(picture.max(axis=-1) < 0.01)
    (top, left), (bottom, right) = black.min(axis=0), black.max(axis=0)
    assert (bottom - top) / (right - left) == pytest.approx(1, abs=0.01)  # 60 x 60 mm, 30 x 20 voxels


def test_expert_and_prediction_have_a_color_each(case, tmp_path):
    picture = draw(case, tmp_path / "a.png")
    assert near(picture, REFERENCE).sum() > 500
    assert near(picture, PREDICTION).sum() > 500


def test_outline_lies_on_the_border_of_the_mask(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:20, 5:15, 4] = 1  # the middle: 20 of 60 mm wide, 30 of 60 mm high
    picture = draw((np.zeros(SHAPE, np.int16), mask, np.zeros(SHAPE, np.uint8)), tmp_path / "a.png", window=(0, 1))
    dark = np.argwhere(picture.max(axis=-1) < 0.01)
    (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0)
    upper = near(picture, REFERENCE)[: (top + bottom) * 85 // 100]  # without the legend
    found = np.argwhere(upper)
    extent = (found.max(axis=0) - found.min(axis=0)) / (bottom - top, right - left)
    np.testing.assert_allclose(extent, (1 / 2, 1 / 3), atol=0.02)


def test_picture_without_an_expert_shows_the_prediction_alone(case, tmp_path):
    image, _, pred = case
    overlay_picture(image, None, pred, RAS_AFFINE, tmp_path / "a.png", title="case")
    picture = imread(tmp_path / "a.png")[..., :3]
    assert not near(picture, REFERENCE).any()
    assert near(picture, PREDICTION).any()


def test_nothing_found_and_a_mask_of_the_whole_slice_are_drawn_too(tmp_path):
    empty, full = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
    picture = draw((np.zeros(SHAPE, np.int16), empty, full), tmp_path / "a.png", window=None)
    assert near(picture, PREDICTION).sum() > 500


def test_notice_is_written_below(case, tmp_path):
    plain = draw(case, tmp_path / "a.png")
    noticed = draw(case, tmp_path / "b.png", notice="not a medical device")
    changed = np.flatnonzero((plain != noticed).any(axis=(1, 2)))
    assert changed.min() > 0.9 * len(plain)


def test_slice_with_most_of_the_rarest_label_is_shown():
    voxels = np.ones((5, 7, 6), np.uint8)
    voxels[:2, 0, 2] = 2
    voxels[:3, 0, 4] = 2
    assert slice_to_show(voxels) == 4


def test_middle_slice_is_shown_if_there_is_no_label():
    assert slice_to_show(np.zeros((5, 7, 9), np.uint8)) == 4


def test_oblique_scan_is_drawn(case, tmp_path):
    tilt = nib.eulerangles.euler2mat(z=0.2, y=0.1, x=-0.1)
    affine = RAS_AFFINE.copy()
    affine[:3, :3] = tilt @ affine[:3, :3]
    overlay_picture(*case, affine, tmp_path / "a.png", title="case", window=(0, 100))
    assert near(imread(tmp_path / "a.png")[..., :3], REFERENCE).any()


def test_curves_have_a_panel_a_group(tmp_path):
    one = {"train/loss": [(0, 1.0), (1, 0.5)]}
    two = one | {"validation/dice_liver": [(1, 0.9)], "validation/dice_tumor": []}
    for number, history in enumerate((one, two), start=1):
        curves_picture(history, tmp_path / f"{number}.png")
    assert imread(tmp_path / "2.png").shape[0] == 2 * imread(tmp_path / "1.png").shape[0]


def test_curves_say_that_they_run_over_epochs(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, _path: figures.append(figure))
    curves_picture({"learning_rate/learning_rate": [(1, 0.1), (2, 0.2)]}, tmp_path / "curves.png")
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_title()) == ("epoch", "learning rate")
