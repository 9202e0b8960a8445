"""Files for viewers: `.seg.nrrd`, ITK-SNAP's and 3D Slicer's tables, and the choice of formats."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import some_voxels, write_series

from medseg.errors import ConfigError, DataError
from medseg.formats import (
    Structures,
    label_segments,
    parse_formats,
    region_segments,
    write_formats,
    write_itksnap_labels,
    write_label_tables,
    write_seg_nrrd,
)
from medseg.reading import ScanSource
from medseg.reading.dicom import find_series, read_series

LABELS = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"liver": [1, 2], "tumor": [2]}
STRUCTURES = Structures(LABELS, REGIONS, "unet_liver", "1.2")
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array([[0.0, -0.8, 0.6], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]) * [0.7, 0.9, 2.5]
OBLIQUE[:3, 3] = [10, -20, 30]


def some_label():
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:7, 1:6, 2:5] = 1
    label[3, 3, 3] = 2
    return label


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_seg_nrrd_has_voxels_grid_names_colors_and_codes(tmp_path, order):
    label = some_label().copy(order=order)
    write_seg_nrrd(label, OBLIQUE, label_segments(LABELS, REGIONS), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, label)
    left, posterior, superior = image.TransformIndexToPhysicalPoint((3, 2, 1))
    np.testing.assert_allclose((-left, -posterior, superior), (OBLIQUE @ (3, 2, 1, 1))[:3], atol=1e-6)
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert fields["Segment0_Name"] == "liver without tumor"
    assert fields["Segment1_Name"] == "tumor"
    assert fields["Segment1_LabelValue"] == "2"
    assert fields["Segment1_Extent"] == "3 3 3 3 3 3"
    assert fields["Segment0_Extent"] == "2 6 1 5 2 4"
    assert "SCT^10200004^Liver" in fields["Segment0_Tags"]
    assert all(0 <= float(part) <= 1 for part in fields["Segment0_Color"].split())


def test_a_segment_without_a_voxel_has_an_empty_extent(tmp_path):
    write_seg_nrrd(some_label() % 2, OBLIQUE, label_segments(LABELS, REGIONS), tmp_path / "a.seg.nrrd")
    assert sitk.ReadImage(str(tmp_path / "a.seg.nrrd")).GetMetaData("Segment1_Extent") == "0 -1 0 -1 0 -1"


def test_a_sheared_grid_is_refused(tmp_path):
    sheared = np.eye(4)
    sheared[1, 2] = 0.2
    with pytest.raises(DataError, match="sheared"):
        write_seg_nrrd(some_label(), sheared, label_segments(LABELS, REGIONS), tmp_path / "a.seg.nrrd")
    assert not list(tmp_path.iterdir())


def test_tables_name_each_value_once(tmp_path):
    write_label_tables(tmp_path, STRUCTURES)
    lines = (tmp_path / "labels_itksnap.txt").read_text().splitlines()
    assert lines[0].startswith("#")
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"]
    assert lines[2].endswith('1 1 1 "liver without tumor"')
    colors = (tmp_path / "labels.ctbl").read_text().splitlines()
    assert colors[1].split()[:2] == ["1", "liver_without_tumor"]
    assert [len(line.split()) for line in colors] == [6, 6, 6]
    with pytest.raises(ValueError, match="names one a line"):
        write_itksnap_labels(region_segments(REGIONS), tmp_path / "b.txt")


def test_a_name_without_a_code_gets_one_of_our_own():
    (segment,) = label_segments({"background": 0, "anterior": 1}, {"anterior": [1]})
    assert (segment.type.scheme, segment.type.meaning, segment.name) == ("99MEDSEG", "anterior", "anterior")


def test_formats_are_asked_for_by_name():
    assert parse_formats("stl, seg") == ("seg", "stl")
    assert parse_formats("") == ()
    with pytest.raises(ConfigError, match="pdf is not known; choose of seg, rtstruct, nrrd, stl"):
        parse_formats("seg,pdf")


def test_a_dicom_case_gets_every_format(tmp_path):
    write_series(tmp_path / "in", some_voxels((9, 8, 7)))
    (series,) = find_series(tmp_path / "in")
    scan = read_series(series.source)
    every = ("seg", "rtstruct", "nrrd", "stl")
    said = write_formats(
        some_label(), scan.affine, tmp_path / "out" / "case", formats=every, source=series.source, structures=STRUCTURES
    )
    assert said == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "case.seg.nrrd",
        "case_liver.stl",
        "case_rtstruct.dcm",
        "case_seg.dcm",
        "case_tumor.stl",
    ]


def test_what_a_case_cannot_have_is_said_and_the_rest_written(tmp_path):
    said = write_formats(
        some_label() % 2,
        OBLIQUE,
        tmp_path / "case",
        formats=("seg", "nrrd", "stl"),
        source=ScanSource(tmp_path / "scan.nii.gz"),
        structures=STRUCTURES,
    )
    assert said == ["no DICOM SEG: the scan is no DICOM series", "no surface of tumor: none found"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.seg.nrrd", "case_liver.stl"]


def test_no_file_of_an_earlier_mask_stands_beside_an_empty_one(tmp_path):
    write_series(tmp_path / "in", some_voxels((9, 8, 7)))
    (series,) = find_series(tmp_path / "in")
    scan = read_series(series.source)
    for label in (some_label(), some_label() * 0):
        said = write_formats(
            label,
            scan.affine,
            tmp_path / "out" / "case",
            formats=("seg", "rtstruct", "stl"),
            source=series.source,
            structures=STRUCTURES,
        )
    assert len(said) == 4
    assert list((tmp_path / "out").iterdir()) == []


def test_formats_not_asked_for_again_do_not_show_an_earlier_mask(tmp_path):
    for formats in (("nrrd", "stl"), ("stl",)):
        write_formats(
            some_label(),
            OBLIQUE,
            tmp_path / "case",
            formats=formats,
            source=ScanSource(tmp_path / "scan.nii.gz"),
            structures=STRUCTURES,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case_liver.stl", "case_tumor.stl"]
