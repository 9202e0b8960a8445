"""The way of a 2D image to the network and back: in pixels alone."""

import csv
import re

import numpy as np
import pytest
import torch
from PIL import Image

from medseg.bundle import Bundle, open_bundle, task_metadata, write_bundle
from medseg.data import find_scans
from medseg.data_half import contradictions
from medseg.errors import ConfigError, DataError
from medseg.inference.batch import Options, predict_folder, report_columns
from medseg.inference.messages import Extras
from medseg.postprocessing import RemoveSmallArea, logits_to_label
from medseg.preprocessing import ImageToGrid, Range, ScanToGrid, ZScore
from medseg.reading import Scan, read_channels
from medseg.report.measurements import measure_image
from medseg.report.pictures import image_picture
from medseg.writing import write_mask_png

RGB = ["red", "green", "blue"]


def scan(voxels, unit="px"):
    return Scan(voxels, np.eye(4), unit=unit)


def test_the_working_grid_is_the_images_own_pixels():
    voxels = np.random.default_rng(0).integers(0, 256, (11, 7, 1)).astype(np.uint8)
    image, grid = ImageToGrid(intensity=Range())([scan(voxels), scan(voxels // 2)])
    assert image.shape == (2, 11, 7, 1)
    np.testing.assert_allclose(image[0].numpy() * 255, voxels, atol=1e-4)
    assert (grid.unit, grid.shape, grid.scan_shape) == ("px", (11, 7, 1), (11, 7, 1))
    label = (voxels > 100).astype(np.uint8)
    np.testing.assert_array_equal(ImageToGrid(intensity=Range()).label(label, grid)[0].numpy(), label)


@pytest.mark.parametrize(("setting", "shape"), [({"pixel_scale": 2}, (21, 11, 1)), ({"longest_edge": 11}, (11, 6, 1))])
def test_larger_pixels_lead_back_to_the_images_own(setting, shape):
    columns, rows = np.mgrid[:41, :21]
    ramp = (3 * columns + 2 * rows)[..., None].astype(np.float32)
    to_grid = ImageToGrid(intensity=Range(0, 1), antialias=False, **setting)
    image, grid = to_grid([scan(ramp)])
    assert grid.shape == shape
    step = grid.scale[0]
    assert image[0, 3, 2, 0].item() == pytest.approx(3 * 3 * step + 2 * 2 * step, abs=1e-3)
    halves = torch.stack([torch.zeros(shape), image[0] - 60])
    np.testing.assert_array_equal(logits_to_label(halves, grid)[..., 0], ramp[..., 0] > 60)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel_scale": 0}, "pixel_scale is 0; give image pixels"),
        ({"pixel_scale": 2, "longest_edge": 9}, "longest_edge is 9 beside pixel_scale 2; set one"),
        ({"longest_edge": 1}, "longest_edge is 1"),
    ],
)
def test_impossible_pixels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageToGrid(intensity=ZScore(), **settings)


def test_an_image_has_no_mm_and_a_scan_is_no_image():
    voxels = np.zeros((5, 4, 1), np.uint8)
    with pytest.raises(DataError, match=r"a 2D image has no mm; .* configs/unet_images.json"):
        ScanToGrid(spacing_mm=(1, 1, 1), intensity=ZScore())([scan(voxels)])
    with pytest.raises(DataError, match="a scan in mm, where this recipe works on 2D images"):
        ImageToGrid(intensity=ZScore())([scan(voxels, "mm")])
    with pytest.raises(DataError, match="the channels have different sizes, 5 x 3, 5 x 4 pixels"):
        ImageToGrid(intensity=ZScore())([scan(voxels), scan(voxels[:, :3])])
    with pytest.raises(ValueError, match="Range needs low < high"):
        Range(5, 5)


def test_areas_and_diameters_are_counted_in_pixels():
    label = np.zeros((20, 15, 1), np.uint8)
    label[2:5, 3:7, 0] = 2  # 3 x 4 pixels
    label[10, 10, 0] = 2
    row, lesions = measure_image(label, regions={"skin": [1, 2], "lesion": [2]}, lesion_region="lesion")
    assert row == {"skin_px": 13, "lesion_px": 13, "lesion_count": 2, "longest_diameter_px": 5.0}  # 3, 4, 5
    assert [lesion["area_px"] for lesion in lesions] == [12, 1]
    assert (lesions[0]["x_px"], lesions[0]["y_px"]) == (3.0, 4.5)
    assert measure_image(label, regions={"skin": [1]})[0]["longest_diameter_px"] is None
    cleaned = RemoveSmallArea(2, 5)(label, np.eye(4))
    assert cleaned.sum() == 24
    assert label.sum() == 26


def test_a_mask_is_a_gray_png_with_the_labels(tmp_path):
    label = np.random.default_rng(0).integers(0, 3, (11, 7, 1)).astype(np.uint8)
    write_mask_png(label, tmp_path / "m.png")
    written = Image.open(tmp_path / "m.png")
    assert (written.mode, written.size) == ("L", (11, 7))
    np.testing.assert_array_equal(np.asarray(written), label[..., 0].T)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder.png: cannot be written"):
        write_mask_png(label, tmp_path / "folder.png")


class Bright(torch.nn.Module):
    """Foreground where red is above 128."""

    def forward(self, image):
        return torch.stack([torch.zeros_like(image[:, 0]), image[:, 0] - 128 / 255], dim=1)


RECIPE = {
    "labels": {"background": 0, "lesion": 1},
    "regions": {"lesion": [1]},
    "lesion_region": "lesion",
    "channels": RGB,
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": 2,
    "intensity": {"_target_": "medseg.preprocessing.Range"},
    "patch_size": [8, 8],
    "network_def": {"_target_": "medseg.networks.UNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 2},
    "scan_to_grid": {"_target_": "medseg.preprocessing.ImageToGrid", "intensity": "@intensity"},
    "inferer": {
        "_target_": "medseg.inference.SliceBySlice",
        "inferer": {"_target_": "medseg.inference.SlidingWindow", "patch_size": "@patch_size"},
    },
    "cleanup": [],
}


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle of images whose network is `Bright`."""
    metadata = task_metadata({}, RECIPE, name="bright", synthetic=True)
    write_bundle(tmp_path / "bundle", recipe=RECIPE, metadata=metadata, state_dict={})
    monkeypatch.setattr(Bundle, "network", lambda *fold: Bright())
    return open_bundle(tmp_path / "bundle")


def test_a_folder_of_images_becomes_masks_and_a_report_in_pixels(bundle, tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (20, 13)), ("deep/b.tif", (9, 31))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(tmp_path / "in" / name)
    Image.fromarray(rng.integers(0, 256, (9, 9)).astype(np.uint8)).save(tmp_path / "in" / "gray.png")
    samples = find_scans(tmp_path / "in", channels=RGB, images=True)
    (tmp_path / "out").mkdir()
    rows = {row["case_id"]: row for row in predict_folder(samples, tmp_path / "out", bundle)}
    assert rows["gray"]["status"] == "failed"
    assert "'green', 'blue' missing" in rows["gray"]["message"]
    for name, case_id in (("a.png", "a"), ("deep/b.tif", "deep/b")):
        red = read_channels(tmp_path / "in" / name, RGB)[0].voxels[..., 0].T
        mask = np.asarray(Image.open(tmp_path / "out" / f"{case_id}_seg.png"))
        np.testing.assert_array_equal(mask, red > 128)
        assert rows[case_id]["lesion_px"] == mask.sum()
    with (tmp_path / "out" / "report.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header == [column for column in report_columns({"lesion": [1]}, "px") if column != "lesion_agreement"]
    assert not [name for name in header if name.endswith(("_mm", "_ml"))]
    with (tmp_path / "out" / "lesions.csv").open(newline="") as file:
        columns = ["case_id", "lesion", "area_px", "longest_diameter_px", "mean_probability", "x_px", "y_px"]
        assert next(csv.reader(file)) == columns


@pytest.mark.parametrize(
    ("extras", "named"),
    [
        (Extras(formats=("stl",)), "--formats"),
        (Extras(instances=True), "--instances"),
        (Extras(formats=("seg",), instances=True), "--formats and --instances"),
    ],
)
def test_files_that_only_scans_get_are_refused_before_anything_is_made(bundle, tmp_path, extras, named):
    with pytest.raises(
        ConfigError, match=rf"^{named}: for scans in mm only, and this model is of 2D images; run it without"
    ):
        predict_folder([], tmp_path / "out", bundle, options=Options(extras=extras))
    assert not (tmp_path / "out").exists()


def test_settings_in_mm_contradict_a_recipe_of_images():
    half = {
        "scan_to_grid": {"_target_": "medseg.preprocessing.ImageToGrid"},
        "spatial_dims": 2,
        "spacing_mm": [1, 1],
        "cleanup": [{"_target_": "medseg.postprocessing.RemoveSmall", "value": 1, "below_ml": 1}],
    }
    assert contradictions(half) == [
        "cleanup::0::below_ml: 2D images have no mm; use below_px",
        "spacing_mm: 2D images have no mm; remove it",
    ]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"neighbors": 1, "in_channels": 2}, r"in_channels: is 2, .* \(a, b\), each in 3 slices, which needs 6; make"),
        ({"neighbors": -1}, "neighbors: is -1; give the number of slices on each side"),
        (
            {"neighbors": 1, "in_channels": 6, "inferer": {"_target_": "x"}},
            "inferer::neighbors: is 0, but neighbors is 1",
        ),
    ],
)
def test_neighbors_that_do_not_fit_are_named(ids, message):
    (found,) = contradictions({"channels": ["a", "b"], **ids})

    assert re.search(message, found)


def test_neighbors_that_fit_are_fine():
    half = {"channels": ["a", "b"], "neighbors": 2, "in_channels": 10, "inferer": {"_target_": "x", "neighbors": 2}}
    assert contradictions(half) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_an_image_is_upright(tmp_path, channels):
    pixels = np.zeros((60, 40, channels), np.uint8)
    pixels[:, :20] = 200  # the upper half is bright
    label = np.zeros((60, 40), np.uint8)
    label[20:30, 5:15] = 1
    image_picture(pixels, label, label, tmp_path / "p.png", title="t", notice="n")
    drawn = np.asarray(Image.open(tmp_path / "p.png").convert("L")).astype(int)
    upper, lower = drawn[drawn.shape[0] // 5, 20], drawn[drawn.shape[0] * 3 // 4, 20]
    assert upper - lower > 100
