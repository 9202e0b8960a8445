"""Every real DICOM file at hand: read as GDCM reads it, or refused for a named reason."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.errors import DataError
from medseg.reading import read_header, read_scan
from medseg.reading.dicom import choose, find_series, read_series

REAL = {  # folder: slices, spacing in mm, thickness in mm, kernel, contrast, chosen, why
    "dicom_ct_crlm1004": (41, (0.796875, 0.796875, 5.0), 5.0, "STANDARD", "GASTRO & OMNI", True, "the only one of"),
    "dicom_ct_hcc048": (89, (0.703125, 0.703125, 2.5), 2.5, "STANDARD", "", True, "the only one of"),
    "dicom_small/dcmqi/ct-3slice": (3, (0.810547, 0.810547, 1.0), 1.25, "STANDARD", "", False, "3 slices, fewer"),
    "dicom_small/torchio": (17, (2.0, 2.0, 2.0), 2.0, "", "", False, "17 slices, fewer"),
}  # fmt: skip
ODD = {  # single files of other libraries' tests: (kind, problem)
    "CT_small.dcm": ("", "one slice only"),
    "MR_small.dcm": ("", "one slice only"),
    "MR_small_RLE.dcm": ("", "one slice only"),
    "MR_small_bigendian.dcm": ("", "one slice only"),
    "MR_small_padded.dcm": ("", "one slice only"),
    "MR_truncated.dcm": ("", "slice 1 is cut short, 62 bytes of its pixels are missing"),
    "SC_rgb_small_odd.dcm": ("a secondary capture", ""),
    "badVR.dcm": ("a radiation dose (RTDOSE)", ""),
    "no_meta.dcm": ("", "a file is no DICOM file, whatever its name says"),  # a byte was put before it
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_series_is_read_as_gdcm_reads_it(shared_data, name):
    slices, spacing, thickness, kernel, contrast, chosen, why = REAL[name]
    (choice,) = choose(find_series(shared_data / name))
    series = choice.series
    assert (series.slices, series.thickness_mm, series.kernel, series.contrast) == (slices, thickness, kernel, contrast)
    np.testing.assert_allclose(series.spacing_mm, spacing, atol=1e-5)
    assert (choice.chosen, why in choice.reason) == (chosen, True)
    scan = read_series(series.source)
    folder = next(path.parent for path in (shared_data / name).rglob("*.dcm"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    peer = reader.Execute()
    np.testing.assert_array_equal(scan.voxels, np.maximum(sitk.GetArrayFromImage(peer).T, -1024))
    for corner in [(0, 0, 0), tuple(length - 1 for length in peer.GetSize())]:
        left, posterior, superior = peer.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose((scan.affine @ (*corner, 1))[:3], (-left, -posterior, superior), atol=1e-3)
    assert scan.voxels.dtype == np.int16
    assert scan.warnings == ()


def test_padding_of_crlm1004_is_air(shared_data):
    """Its padding value -2000 is stored where the scanner saw nothing: -3024 HU after the rescale."""
    path = min((shared_data / "dicom_ct_crlm1004").rglob("*.dcm"))
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).min() == -3024
    assert read_scan(shared_data / "dicom_ct_crlm1004").voxels.min() == -1024


def test_every_volume_is_chosen_where_all_are_wanted(shared_data):
    found = [series for name in REAL for series in find_series(shared_data / name)]
    assert [choice.chosen for choice in choose(found, all_series=True)] == [True] * 4


def test_the_segmentation_beside_a_series_is_no_volume(shared_data):
    chosen = choose(find_series(shared_data / "dicom_small"), all_series=True)
    assert [choice.reason for choice in chosen if not choice.chosen] == ["is a segmentation (SEG), no volume"]
    assert read_header(next(choice.series.source for choice in chosen if choice.chosen)).shape == (512, 512, 3)


def test_every_file_of_pydicoms_own_tests_is_read_or_refused_in_one_line():
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not folder.is_dir():
        pytest.skip("this pydicom came without its test files")
    places = sorted({path.parent for path in folder.rglob("*") if path.is_file()})
    scans, refusals = [], []
    for series in (series for place in places for series in find_series(place)):
        try:
            scans.append(read_series(series.source))
        except DataError as error:
            refusals.append(str(error))
    assert scans
    assert all(np.isfinite(scan.affine).all() and scan.voxels.ndim == 3 for scan in scans)
    assert len(refusals) > 10
    for message in refusals:
        assert message.startswith("DICOM series: ")
        assert "\n" not in message
        assert str(folder) not in message


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_refused_for_its_reason(shared_data, tmp_path, name):
    kind, problem = ODD[name]
    (tmp_path / name).write_bytes((shared_data / "odd" / "dicom" / name).read_bytes())
    (series,) = find_series(tmp_path)
    assert series.kind == kind
    assert problem in "".join(series.problems)
    with pytest.raises(DataError, match="DICOM series: ") as caught:
        read_series(series.source)
    assert (problem or kind) in str(caught.value)
