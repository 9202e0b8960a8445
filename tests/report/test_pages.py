"""Pages: self-contained, honest, escaped; read with an HTML parser, not by eye alone."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from medseg.regions import LabelFacts, Lesions
from medseg.report.measurements import measure
from medseg.report.pages import About, _center, draw_case, mark_edited, page_path, write_case_page, write_index

REGIONS = {"liver": [1, 2], "tumor": [2]}
ABOUT = About("unet_liver 0.1.0", "float32", True, REGIONS, "tumor", window=(-100, 200))
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


class Page(HTMLParser):
    """Text, links, pictures and scripts of a page."""

    def __init__(self, path):
        super().__init__()
        self.words, self.links, self.images, self.scripts = [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.links += [values[key] for key in ("href", "src") if key in values]
        self.images += [values] if tag == "img" else []
        self.scripts += tag == "script"

    def handle_data(self, data):
        self.words.append(data)


def case(label=None):
    if label is None:
        label = np.zeros((24, 20, 16), np.uint8)
        label[4:18, 4:16, 3:13] = 1
        label[8:11, 8:11, 6:9], label[14, 12, 5] = 2, 2
    image = np.random.default_rng(0).integers(-80, 180, label.shape).astype(np.int16)
    row, lesions = measure(label, AFFINE, regions=REGIONS, lesion_region="tumor")
    return image, label, {"case_id": "study 1/liver & co", "status": "done", **row}, lesions


def written(tmp_path, about=ABOUT, label=None, **more):
    image, label, row, lesions = case(label)
    drawn = draw_case(image, label, AFFINE, about, lesions=Lesions.of(label, [2]))
    path = page_path(tmp_path, row["case_id"])
    write_case_page(path, about, row | more, lesions, drawn)
    return Page(path), path


def test_a_case_page_says_what_the_table_says(tmp_path):
    page, path = written(tmp_path, flags=["liver: <b>odd</b>"], warnings=["sform and qform differ; sform used"])
    assert path == tmp_path / "cases" / "study 1" / "liver & co.html"
    for words in ("study 1/liver & co", "not a medical device; trained on synthetic data, not for patients"):
        assert words in page.text
    assert "unet_liver 0.1.0; float32" in page.text
    assert f"liver {1680 * 0.016:.1f}" in page.text
    assert f"tumor {28 * 0.016:.1f}" in page.text
    assert "Tumor: 2 found" in page.text
    assert "Please look liver: <b>odd</b>" in page.text  # as text: it was escaped
    assert "sform and qform differ; sform used" in page.text


def test_a_case_page_explains_its_shares(tmp_path):
    plain, _ = written(tmp_path)
    assert "Confidence" not in plain.text
    assert "Agreement" not in plain.text
    page, _ = written(tmp_path, liver_confidence=0.9, liver_agreement=0.8)
    assert "Confidence: the mean probability that the network gives, not how often it is right." in page.text
    assert "Agreement: mean Dice between mirrored answers, or folds." in page.text


def test_a_case_page_needs_nothing_beside_it(tmp_path):
    page, path = written(tmp_path)
    assert {link for link in page.links if not link.startswith("data:")} == {"../../index.html"}
    assert len(page.images) == 4
    assert all(image["alt"] for image in page.images)
    assert page.scripts == 0
    assert not re.search(r"https?://", path.read_text(encoding="utf-8"))


def test_an_empty_mask_is_none_found_not_no_tumor(tmp_path):
    page, _ = written(tmp_path, label=np.zeros((12, 12, 8), np.uint8))
    assert "Tumor: none found" in page.text
    assert "liver none found" in page.text
    assert "no tumor" not in page.text.lower()
    assert len(page.images) == 3  # no montage of nothing


def test_a_model_of_patients_has_no_watermark(tmp_path):
    about = About("m 1", "float32", False, REGIONS, "tumor")
    assert "synthetic" not in written(tmp_path, about)[0].text


def test_an_image_in_pixels_has_one_picture_and_no_milliliters(tmp_path):
    about = About("m 1", "float32", False, {"lesion": [1]}, None, unit="px")
    pixels = np.zeros((30, 20, 1), np.uint8)
    pixels[5:10, 5:10] = 1
    drawn = draw_case(pixels * 200, pixels, np.eye(4), about)
    path = page_path(tmp_path, "a")
    write_case_page(path, about, {"case_id": "a", "status": "done", "lesion_px": 25}, [], drawn)
    page = Page(path)
    assert "lesion 25" in page.text
    assert "mL" not in page.text
    assert len(page.images) == 1


def test_an_image_in_pixels_is_shown_as_it_is_stored():
    pixels = np.zeros((40, 20, 1), np.uint8)  # 40 columns, 20 rows
    pixels[2:8, 1:5] = 255  # to the upper left
    about = About("m 1", "float32", False, {"lesion": [1]}, None, unit="px")
    (view,) = draw_case(pixels, np.zeros_like(pixels), np.eye(4), about).views
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(view["uri"].split(",")[1]))).convert("L"))
    rows, columns = np.nonzero(shown > 128)
    assert shown.shape[1] == 2 * shown.shape[0]
    assert rows.mean() < shown.shape[0] / 2
    assert columns.mean() < shown.shape[1] / 2


def rows():
    done = {"case_id": "a#1", "status": "done", "flags": "", "message": "", "liver_ml": 1500.25, "tumor_ml": 0.0}
    failed = {"case_id": "</script><b>", "status": "failed", "message": "b.nii.gz: cut short"}
    return [done | {"lesion_count": 0, "longest_diameter_mm": 0.0}, failed, done | {"flags": "tumor: none found"}]


def listed(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="rows">(.*?)</script>', text, re.DOTALL)[1])


def test_the_list_holds_every_row_with_its_page(tmp_path):
    write_index(tmp_path / "index.html", ABOUT, rows(), running=True)
    first, failed, flagged = listed(tmp_path / "index.html")
    assert first == ["a#1", "done", "", "", 1500.25, 0.0, 0.0, 0.0, "cases/a%231.html"]
    assert failed == ["</script><b>", "failed", "", "b.nii.gz: cut short", "", "", "", "", ""]
    assert flagged[2] == "tumor: none found"
    page = Page(tmp_path / "index.html")
    assert "2 done, 1 failed, 1 to look at" in page.text
    assert "still running" in page.text
    assert "not a medical device" in page.text


def test_a_page_says_once_that_its_mask_was_edited_since(tmp_path):
    before, path = written(tmp_path)
    assert "edited" not in before.text
    mark_edited(path)
    mark_edited(path)
    mark_edited(tmp_path / "none.html")
    after = Page(path)
    assert after.text.count("The mask was edited since this page was written") == 1
    assert after.text.index("edited") < after.text.index("Volumes")
    assert after.images == before.images
    assert not (tmp_path / "none.html").exists()
    _, again = written(tmp_path)
    assert "edited" not in Page(again).text


def test_the_list_of_3000_cases_stays_below_5_mb(tmp_path):
    long = {"flags": "liver: 420.0 mL, outside the expected 500 to 3500 mL; " * 9, "message": "word " * 200}
    write_index(tmp_path / "index.html", ABOUT, [rows()[0] | long] * 3000)
    assert (tmp_path / "index.html").stat().st_size < 5 * 2**20


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_what_is_not_known_is_an_empty_cell(tmp_path, value):
    write_index(tmp_path / "index.html", ABOUT, [rows()[0] | {"liver_ml": value}])
    assert listed(tmp_path / "index.html")[0][4] == ""


def test_a_mask_on_another_grid_is_not_drawn():
    with pytest.raises(ValueError, match="give both on one grid"):
        draw_case(np.zeros((5, 6, 7), np.int16), np.zeros((5, 6, 8), np.uint8), AFFINE, ABOUT)


@pytest.mark.parametrize("value", [1, 2])
def test_pictures_cut_through_the_voxel_nearest_to_the_middle(value):
    rng = np.random.default_rng(value)
    for shape in [(30, 20, 25), (40, 3, 9), (7, 8, 1)]:
        label = np.where(rng.random(shape) > 0.995, value, 0).astype(np.uint8)
        label[shape[0] // 4, 0, 0] = value
        mask = label[::-1] == value  # the affine's first axis runs to the left
        places = np.argwhere(mask)
        away = np.abs(places - places.mean(axis=0)).sum(axis=1)
        facts, affine = LabelFacts.of(label), np.diag([-1.0, 1.0, 1.0, 1.0])
        center, through = _center(facts, affine, ABOUT, None)
        assert through == "liver"
        assert mask[tuple(center)]
        assert np.abs(center - places.mean(axis=0)).sum() == pytest.approx(away.min())
