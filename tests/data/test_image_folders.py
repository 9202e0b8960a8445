"""Folders of 2D images and masks."""

import numpy as np
import pytest
from PIL import Image

from medseg.data import count_labels, find_cases, find_scans, fingerprint
from medseg.errors import DataError
from medseg.reading import MaskCode

RGB = ["red", "green", "blue"]


def write(path, size=(12, 9), *, gray=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if gray else (*size[::-1], 3)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, shape).astype(np.uint8)).save(path)


def write_mask(path, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size[::-1], np.uint8)
    mask[2:5, 3:9] = 255
    Image.fromarray(mask).save(path)


@pytest.fixture
def root(tmp_path):
    for number, suffix in enumerate(["png", "jpg", "tif", "PNG", "jpeg", "tiff"]):
        write(tmp_path / "set" / "images" / f"img_{number:04d}.{suffix}")
        write_mask(tmp_path / "set" / "masks" / f"img_{number:04d}.png")
    return tmp_path / "set"


def cases_of(root, channels=RGB, **settings):
    cases = find_cases(root, channels=channels, folds=3, **settings)
    return cases, {sample["case_id"]: sample for sample in cases.training + cases.validation}


def test_images_and_masks_are_paired_by_name(root):
    cases, found = cases_of(root)
    assert cases.layout == "images and masks"
    assert sorted(found) == [f"img_{number:04d}" for number in range(6)]  # ids, not channel numbers
    assert found["img_0001"]["image"].endswith("img_0001.jpg")
    assert found["img_0001"]["label"].endswith("masks/img_0001.png") or "\\" in found["img_0001"]["label"]


def test_labels_may_be_the_masks_folder_and_masks_have_an_ending(root):
    (root / "masks").rename(root / "labels")
    for path in (root / "labels").iterdir():
        path.rename(path.with_name(f"{path.stem}_segmentation.png"))
    cases, found = cases_of(root)
    assert cases.layout == "images and labels"
    assert len(found) == 6


def test_test_images_may_have_masks(root):
    write(root / "imagesTs" / "t1.png")
    write(root / "imagesTs" / "t2.png")
    write_mask(root / "masksTs" / "t2.png")
    assert [("label" in sample, sample["case_id"]) for sample in cases_of(root)[0].test] == [
        (False, "t1"),
        (True, "t2"),
    ]


def test_gray_images_need_one_channel(root):
    for path in list((root / "images").iterdir()):
        path.unlink()
        write(path.with_suffix(".png"), gray=True)
    assert len(cases_of(root, ["gray"])[1]) == 6
    with pytest.raises(
        DataError, match=r"case 'img_0000': 1 of the channels \['red', .*for gray images set `channels`"
    ):
        cases_of(root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "masks" / "img_0002.png").unlink(), "case 'img_0002': an image without label"),
        (lambda root: (root / "images" / "img_0000.png").unlink(), "case 'img_0000': a label without image"),
        (lambda root: write(root / "images" / "img_0002.png"), "two files for case 'img_0002'"),
        (lambda root: (root / "labels").mkdir(), "masks/ and labels/ both hold masks; keep one"),
        (
            lambda root: write_mask(root / "masks" / "img_0002.png", (9, 12)),
            r"case 'img_0002': the mask img_0002.png has 9 x 12 pixels, the image 12 x 9; .*not turned and not scaled",
        ),
        (
            lambda root: (root / "masks" / "img_0002.png").rename(root / "masks" / "img_0002.jpg"),
            "img_0002.jpg: a mask in JPEG",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(root, spoil, message):
    spoil(root)
    with pytest.raises(DataError, match=message):
        cases_of(root)


def test_images_without_masks_are_no_data_set(root):
    (root / "masks").rename(root / "elsewhere")
    with pytest.raises(DataError, match="images/ but neither masks/ nor labels/ beside it"):
        cases_of(root)


def test_a_turned_image_is_refused_before_training(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "images" / "img_0001.jpg").copy().save(root / "images" / "img_0001.jpg", exif=exif)
    with pytest.raises(DataError, match=r"img_0001.jpg: EXIF orientation 6"):
        cases_of(root)


def test_a_csv_may_list_images(root):
    lines = ["case_id,image,label,patient"]
    lines += [
        f"c{number},images/{path.name},masks/{path.stem}.png,p{number}"
        for number, path in enumerate(sorted((root / "images").iterdir()))
    ]
    (root / "cases.csv").write_text("\n".join(lines))
    assert sorted(cases_of(root)[1]) == [f"c{number}" for number in range(6)]


def test_images_to_predict_are_one_case_each_and_scans_are_left_out(root):
    (root / "images" / "scan.nii.gz").touch()
    (root / "images" / ".half.png").touch()
    samples = find_scans(root / "images", channels=RGB, images=True)
    assert [sample["case_id"] for sample in samples] == [f"img_{number:04d}" for number in range(6)]
    assert all(isinstance(sample["image"], str) for sample in samples)
    assert [sample["case_id"] for sample in find_scans(root / "images", channels=["ct"])] == ["scan"]
    (root.parent / "set2").mkdir()
    with pytest.raises(DataError, match=r"scans 'set2': no image files \(\.png, .*\) in it"):
        find_scans(root.parent / "set2", channels=RGB, images=True)


def test_mask_pixels_are_counted_and_files_hashed(root):
    _, found = cases_of(root)
    masks = MaskCode({"background": 0, "lesion": 1}, values={"lesion": 255})
    assert count_labels(list(found.values()), 2, masks=masks) == [6 * (108 - 18), 6 * 18]
    before = fingerprint(list(found.values()))
    assert (before["cases"], before["labels"], before["files"]) == (6, 6, 12)
    write(root / "images" / "img_0000.png", (12, 10))
    assert fingerprint(list(found.values())) != before
