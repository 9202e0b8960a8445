"""Series that are no whole volume are refused in one line that names the slice, and never a person or a folder."""

import errno
import re

import numpy as np
import pydicom
import pytest
from dicom_files import (
    CANARY,
    CANARY_DATE,
    as_mr,
    capture,
    decimal,
    enhanced,
    grid,
    image,
    save,
    set_pixels,
    some_voxels,
)
from dicom_files import write_series as write

from medseg.errors import DataError
from medseg.reading import read_scan
from medseg.reading.dicom import find_series, read_series


def refusal(folder):
    """What `read_series` says of the one volume in a folder; `find_series` must say the same."""
    (series,) = [series for series in find_series(folder) if not series.kind]
    with pytest.raises(DataError) as caught:
        read_series(series.source)
    message = str(caught.value)
    assert message == f"DICOM series: {series.problems[0]}"
    assert "\n" not in message
    assert not any(word in message for word in (CANARY, CANARY_DATE, str(folder), folder.name))
    return message


def write_series(folder, *arguments, seed=None, **more):
    """Files in the order of the slices: slice 3 is IM0002.dcm."""
    return write(folder, *arguments, seed=seed, **more)


def change(index, **values):
    """An edit of one slice."""

    def edit(dataset, at):
        if at == index:
            for name, value in values.items():
                if value is None:
                    delattr(dataset, name)
                else:
                    setattr(dataset, name, value)

    return edit


def test_a_missing_slice_is_refused_between_its_neighbors(tmp_path):
    write_series(tmp_path, drop=(2,))
    assert "1 slice is missing between slice 2 (IM0001.dcm) and slice 4 (IM0003.dcm) (5 mm where 2.5 mm" in refusal(
        tmp_path
    )


def test_several_missing_slices_are_counted(tmp_path):
    write_series(tmp_path, some_voxels((5, 4, 9)), drop=(3, 4, 5))
    assert "3 slices are missing between slice 3 (IM0002.dcm) and slice 7 (IM0006.dcm)" in refusal(tmp_path)


def test_a_double_slice_is_refused_with_both_names(tmp_path):
    paths = write_series(tmp_path)
    double = pydicom.dcmread(paths[1])
    double.InstanceNumber = 50
    save(double, tmp_path / "IM0049.dcm")
    assert "slice 2 (IM0001.dcm) and slice 50 (IM0049.dcm) lie at one place" in refusal(tmp_path)


def test_two_phases_in_one_series_are_refused_as_such(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", some_voxels(seed=1))
    assert "several volumes in one series" in refusal(tmp_path)


def test_a_slice_cut_short_is_refused_from_its_header(tmp_path):
    path = write_series(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-30])
    assert "slice 3 (IM0002.dcm) is cut short, 30 bytes of its pixels are missing; copy" in refusal(tmp_path)


@pytest.mark.parametrize("left", [0, 60, 400, 700])
def test_a_slice_cut_in_its_header_is_refused_as_a_file_beside_the_series(tmp_path, left):
    path = write_series(tmp_path)[3]  # an end slice, whose absence no gap would show
    path.write_bytes(path.read_bytes()[:left])
    assert "IM0003.dcm beside the series is" in refusal(tmp_path)


def test_a_slice_of_another_direction_is_refused(tmp_path):
    tilted = [decimal(number) for number in (1, 0, 0, 0, np.cos(0.1), np.sin(0.1))]
    write_series(tmp_path, edit=change(1, ImageOrientationPatient=tilted))
    assert "slice 2 (IM0001.dcm) has other directions than the others" in refusal(tmp_path)


def test_two_stacks_in_one_series_are_refused(tmp_path):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", affine=grid(rotation=np.eye(3)[[0, 2, 1]]))
    assert "slices of several orientations in one series" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ImagePositionPatient": None}, r"slice 2 \(IM0001.dcm\) has no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, r"slice 2 \(IM0001.dcm\) has no ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no pair of perpendicular directions"),
        ({"PixelSpacing": None}, r"slice 2 \(IM0001.dcm\) has no PixelSpacing"),
        ({"PixelSpacing": [0, 0]}, "PixelSpacing that is not positive"),
        ({"PixelSpacing": ["0.9", "0.9"]}, r"another pixel spacing \(0.9 x 0.9 mm\) than the others"),
        ({"RescaleSlope": None}, r"slice 2 \(IM0001.dcm\) has no RescaleSlope and RescaleIntercept, so its HU are unk"),
        ({"RescaleSlope": 0}, "RescaleSlope of 0"),
        ({"RescaleType": "Z_EFF"}, "values in 'Z_EFF', not HU"),
        ({"FrameOfReferenceUID": "1.9"}, "several frames of reference"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 of 32 bits a pixel"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"is in color \(PALETTE COLOR\)"),
    ],
)  # fmt: skip
def test_a_slice_that_is_not_placed_or_scaled_is_refused(tmp_path, values, said):
    write_series(tmp_path, edit=change(1, **values))
    assert re.search(said, refusal(tmp_path))


def test_no_series_uid_is_refused(tmp_path):
    write_series(tmp_path, SeriesInstanceUID="")
    assert "no SeriesInstanceUID" in find_series(tmp_path)[0].problems[0]


def test_slices_of_another_size_are_refused(tmp_path):
    def smaller(dataset, index):
        if index == 0:
            set_pixels(dataset, np.zeros((3, 3)))

    write_series(tmp_path, edit=smaller)
    assert "slice 1 (IM0000.dcm) has another size (3 rows x 3 columns)" in refusal(tmp_path)


@pytest.mark.parametrize("shift", [0.4, 1.0])
def test_uneven_spacing_is_refused(tmp_path, shift):
    def edit(dataset, index):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, decimal(float(z) + shift * (index >= 2))]

    write_series(tmp_path, edit=edit)
    assert "unevenly spaced" in refusal(tmp_path)


def test_a_slice_shifted_sideways_is_refused(tmp_path):
    def edit(dataset, index):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [decimal(float(x) + 3 * (index == 2)), y, z]

    write_series(tmp_path, edit=edit)
    assert "slice 3 (IM0002.dcm) is shifted sideways by 3 mm" in refusal(tmp_path)


def test_voxels_of_a_size_that_no_scanner_makes_are_refused(tmp_path):
    write_series(tmp_path, affine=grid(spacing=(0.0008, 0.0009, 0.0025)), edit=None)
    assert "at one place" in refusal(tmp_path)
    write_series(tmp_path, affine=grid(spacing=(80, 90, 250)))
    assert "voxels of 80 x 90 x 250 mm, so lengths are in another unit or wrong" in refusal(tmp_path)


def test_a_single_slice_is_refused(tmp_path):
    write_series(tmp_path, drop=(1, 2, 3))
    assert "one slice only" in refusal(tmp_path)


def test_an_mr_in_monochrome1_is_refused(tmp_path):
    def edit(dataset, index):
        as_mr(dataset)
        dataset.PhotometricInterpretation = "MONOCHROME1"

    write_series(tmp_path, edit=edit)
    assert "MONOCHROME1" in refusal(tmp_path)


def test_an_enhanced_ct_cut_short_names_its_bytes(tmp_path):
    path = save(enhanced(some_voxels(), grid()), tmp_path / "ct.dcm")
    path.write_bytes(path.read_bytes()[:-7])
    assert "frame 1 is cut short, 7 bytes" in refusal(tmp_path)


def test_frames_that_are_not_placed_are_refused(tmp_path):
    whole = enhanced(some_voxels(), grid())
    del whole.PerFrameFunctionalGroupsSequence, whole.SharedFunctionalGroupsSequence
    whole.RescaleSlope, whole.RescaleIntercept = 1, -1024
    save(whole, tmp_path / "ct.dcm")
    assert "frame 1 has no ImagePositionPatient" in refusal(tmp_path)


@pytest.mark.parametrize("frames", ["1000000000", "200"])
def test_more_frames_than_the_file_has_are_refused(tmp_path, frames):
    whole = enhanced(some_voxels(), grid())
    whole.NumberOfFrames = frames
    save(whole, tmp_path / "ct.dcm")
    series = find_series(tmp_path)
    assert len(series) == 1
    assert series[0].problems


def test_a_name_that_may_be_a_persons_is_not_said(tmp_path):
    write_series(tmp_path, name="DOE_JOHN_{}.dcm", edit=change(1, PixelSpacing=[0, 0]))
    assert refusal(tmp_path).startswith("DICOM series: slice 2 has a PixelSpacing")


@pytest.mark.parametrize(
    ("name", "harmless"),
    [("IM00012", True), ("1-041.dcm", True), ("00000070.dcm", True), ("ct_7.IMA", True), ("19331224.dcm", False),
     ("DOE.dcm", False), ("smith12.dcm", False), ("12-1985.dcm", False), ("331224", False)],
)  # fmt: skip
def test_which_file_names_are_said(tmp_path, name, harmless):
    path = write_series(tmp_path, edit=change(1, PixelSpacing=[0, 0]))[1]
    path.rename(tmp_path / name)
    assert (name in refusal(tmp_path)) == harmless


def test_a_folder_of_two_series_or_none_is_not_one_scan(tmp_path):
    with pytest.raises(DataError, match="0 DICOM series"):
        read_scan(tmp_path)
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", SeriesInstanceUID="1.2.3.5")
    with pytest.raises(DataError, match=r"2 DICOM series .* `medseg inspect`"):
        read_scan(tmp_path)


def test_what_does_not_fit_into_memory_is_refused_before_pixels_are_read(tmp_path, monkeypatch):
    voxels = np.zeros((256, 256, 20), np.int16)
    write_series(tmp_path, voxels)
    (series,) = find_series(tmp_path)
    monkeypatch.setenv("MEDSEG_MAX_SCAN_MB", "2")
    monkeypatch.setattr("medseg.reading.dicom.volume.stored_pixels", None)
    with pytest.raises(DataError, match=r"256 x 256 x 20 voxels need 3 MB, over the limit of 2 MB"):
        read_series(series.source)


def test_a_file_that_is_gone_is_said(tmp_path):
    paths = write_series(tmp_path)
    (series,) = find_series(tmp_path)
    paths[0].unlink()
    with pytest.raises(DataError, match="DICOM series: a file of the series is gone"):
        read_series(series.source)


def test_a_share_that_is_gone_is_told_from_damaged_files(tmp_path, monkeypatch):
    write_series(tmp_path)
    (series,) = find_series(tmp_path)

    def gone(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    for at in (
        "medseg.reading.dicom.files._Folder.open",
        "medseg.reading.dicom.files._Folder.size",
        "pathlib.Path.is_dir",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(at, gone)
            with pytest.raises(DataError, match=r"DICOM series: .* \(Stale file handle\)") as caught:
                read_series(series.source)
        assert isinstance(caught.value.__cause__, OSError) or isinstance(caught.value.__cause__.__cause__, OSError)


def test_a_file_that_is_overwritten_with_something_else_is_said(tmp_path):
    paths = write_series(tmp_path, name="IM{}")
    (series,) = find_series(tmp_path)
    paths[0].write_text("text")
    with pytest.raises(DataError, match="DICOM series: a file of the series is no longer DICOM"):
        read_series(series.source)


def test_beside_a_large_file_of_another_series_only_damaged_files_matter(tmp_path):
    write_series(tmp_path)
    other = np.zeros((256, 256, 2), np.int16)
    paths = write_series(tmp_path, other, name="1-{:02d}.dcm", SeriesInstanceUID="1.2.3.5")
    source = next(series.source for series in find_series(tmp_path) if series.slices == 4)
    assert read_series(source).voxels.shape == (7, 5, 4)
    paths[1].write_bytes(bytes(200_000))  # as a transfer that reserves the space and breaks off leaves it
    with pytest.raises(DataError, match=r"1-01\.dcm beside the series is no DICOM file"):
        read_series(source)


def test_a_capture_and_a_slice_in_color_are_no_volume(tmp_path):
    save(capture(), tmp_path / "screen.dcm")
    (series,) = find_series(tmp_path)
    assert series.kind == "a secondary capture"
    with pytest.raises(DataError, match="is a secondary capture, no volume"):
        read_series(series.source)
    row = (1, 0, 0)
    color = image(np.zeros((4, 4)), (0, 0, 0), row, (0, 1, 0), (1, 1))
    color.SamplesPerPixel, color.PlanarConfiguration, color.PhotometricInterpretation = 3, 0, "RGB"
    color.PixelData = bytes(96)
    save(color, tmp_path / "ct" / "1.dcm")
    assert "is in color (RGB)" in refusal(tmp_path / "ct")
