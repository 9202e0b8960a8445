"""DICOM SEG and RT structures, read back with plain pydicom and NumPy: the same voxels, in the same places."""

from itertools import permutations, product

import numpy as np
import pydicom
import pytest
from dicom_files import CANARY, enhanced, grid, save, some_voxels, write_series
from matplotlib.path import Path as Polygon

from medseg.errors import DataError
from medseg.formats.dicom_seg import write_dicom_seg
from medseg.formats.rtstruct import write_rtstruct
from medseg.formats.segments import label_segments, region_segments
from medseg.reading import ScanSource
from medseg.reading.dicom import find_series, read_series

LABELS = {"background": 0, "liver": 1, "tumor": 2}
REGIONS = {"liver": [1, 2], "tumor": [2]}
SHAPE = (14, 11, 6)
MODEL = {"model": "unet_liver", "version": "1.2"}


def some_label(shape=SHAPE):
    """A liver with a hole, a tumor of three voxels, and an island."""
    label = np.zeros(shape, np.uint8)
    label[2:10, 3:9, 1:4] = 1
    label[4:6, 5:7, 2] = 0
    label[8, 4:6, 1:3] = 2
    label[8, 5, 2] = 1
    label[12, 1, 4] = 1
    return label


def opened(folder):
    (series,) = find_series(folder)
    return series.source, read_series(series.source)


def world_of(mask, affine):
    """Places of a mask's voxels, LPS mm, in a fixed order."""
    places = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    return sorted(map(tuple, np.round(places * [-1, -1, 1], 2)))


def frames_of(seg, number):
    """Places of the voxels of one segment, by the functional groups and the packed bits alone."""
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    count = int(seg.NumberOfFrames) * seg.Rows * seg.Columns
    frames = bits[:count].reshape(int(seg.NumberOfFrames), seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    spacing = [float(each) for each in shared.PixelMeasuresSequence[0].PixelSpacing]
    orientation = [float(each) for each in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    along_columns, along_rows = np.array(orientation[:3]), np.array(orientation[3:])
    places = []
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        corner = np.array([float(each) for each in group.PlanePositionSequence[0].ImagePositionPatient])
        for row, column in np.argwhere(frame):
            places.append(corner + column * spacing[1] * along_columns + row * spacing[0] * along_rows)
    return sorted(map(tuple, np.round(places, 2)))


def affines():
    """A few of the 48 orientations, and an oblique one."""
    for axes, signs in list(product(permutations(range(3)), product((1, -1), repeat=3)))[::7]:
        laid = np.zeros((3, 3))
        laid[axes, range(3)] = signs
        yield grid(rotation=laid)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    yield grid(rotation=np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]))


@pytest.mark.parametrize("affine", affines())
def test_a_segmentation_holds_the_same_voxels_in_the_same_places(tmp_path, affine):
    write_series(tmp_path / "in", some_voxels(SHAPE), affine)
    source, scan = opened(tmp_path / "in")
    label = some_label(scan.voxels.shape)
    segments = label_segments(LABELS, REGIONS)
    write_dicom_seg(label, scan.affine, tmp_path / "seg.dcm", source=source, segments=segments, **MODEL)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    for number, value in ((1, 1), (2, 2)):
        assert frames_of(seg, number) == world_of(label == value, scan.affine)


def test_a_segmentation_names_series_images_codes_and_model(tmp_path):
    paths = write_series(tmp_path / "in", some_voxels(SHAPE))
    source, scan = opened(tmp_path / "in")
    write_dicom_seg(
        some_label(),
        scan.affine,
        tmp_path / "seg.dcm",
        source=source,
        segments=label_segments(LABELS, REGIONS),
        **MODEL,
    )
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    first = pydicom.dcmread(paths[0])
    assert seg.StudyInstanceUID == first.StudyInstanceUID
    assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert seg.PatientName == CANARY  # an archive files it under its patient
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert named <= {pydicom.dcmread(path).SOPInstanceUID for path in paths}
    by_height = {
        tuple(map(float, pydicom.dcmread(path).ImagePositionPatient)): pydicom.dcmread(path).SOPInstanceUID
        for path in paths
    }
    for group in seg.PerFrameFunctionalGroupsSequence:  # each frame names the image that it lies on
        place = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        image = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert by_height[place] == image
    liver, tumor = seg.SegmentSequence
    assert (liver.SegmentLabel, tumor.SegmentLabel) == ("liver without tumor", "tumor")
    codes = [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in (liver, tumor)]
    assert codes == ["10200004", "108369006"]
    algorithm = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("unet_liver", "1.2")
    assert seg.ContentDescription == "not a medical device"
    assert str(seg.ContentCreatorName) == "medseg"  # no person: readers warn where it is absent


@pytest.mark.parametrize("write", [write_dicom_seg, write_rtstruct])
def test_the_same_result_of_the_same_scan_keeps_its_uid(tmp_path, write):
    write_series(tmp_path / "in", some_voxels(SHAPE))
    source, scan = opened(tmp_path / "in")
    uids = []
    for label in (some_label(), some_label(), some_label() % 2):
        write(label, scan.affine, tmp_path / "a.dcm", source=source, segments=region_segments(REGIONS), **MODEL)
        uids.append(pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID)
    assert uids[0] == uids[1] != uids[2]


def enhanced_series(folder):
    voxels = some_voxels(SHAPE)
    save(enhanced(voxels, grid()), folder / "one.dcm")
    return opened(folder)


def test_a_multi_frame_scan_is_segmented_frame_by_frame(tmp_path):
    source, scan = enhanced_series(tmp_path / "in")
    label = some_label(scan.voxels.shape)
    segments = region_segments(REGIONS)
    write_dicom_seg(label, scan.affine, tmp_path / "seg.dcm", source=source, segments=segments, **MODEL)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert frames_of(seg, 1) == world_of(label > 0, scan.affine)
    write_rtstruct(label, scan.affine, tmp_path / "rt.dcm", source=source, segments=segments, **MODEL)
    frames = pydicom.dcmread(tmp_path / "in" / "one.dcm").PerFrameFunctionalGroupsSequence
    for contour in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence:
        frame = frames[contour.ContourImageSequence[0].ReferencedFrameNumber - 1]
        height = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        assert float(contour.ContourData[2]) == pytest.approx(height, abs=1e-3)


def filled(contours, affine, shape):
    """The voxels whose centers lie inside an odd number of the contours of their slice."""
    to_voxel = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    mask = np.zeros(shape, bool)
    centers = np.argwhere(np.ones(shape[:2], bool))
    for contour in contours:
        points = np.array([float(each) for each in contour.ContourData]).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        (index,) = set(np.round(voxels[:, 2]).astype(int))
        np.testing.assert_allclose(voxels[:, 2], index, atol=1e-3)
        odd = Polygon(np.concatenate([voxels[:, :2], voxels[:1, :2]])).contains_points(centers)
        mask[:, :, index] ^= odd.reshape(shape[:2])
    return mask


@pytest.mark.parametrize("affine", affines())
def test_contours_enclose_exactly_the_voxels_of_the_mask(tmp_path, affine):
    write_series(tmp_path / "in", some_voxels(SHAPE), affine)
    source, scan = opened(tmp_path / "in")
    label = some_label(scan.voxels.shape)
    write_rtstruct(label, scan.affine, tmp_path / "rt.dcm", source=source, segments=region_segments(REGIONS), **MODEL)
    result = pydicom.dcmread(tmp_path / "rt.dcm")
    names = {item.ROINumber: item.ROIName for item in result.StructureSetROISequence}
    assert sorted(names.values()) == ["liver", "tumor"]
    for item in result.ROIContourSequence:
        mask = np.isin(label, REGIONS[names[item.ReferencedROINumber]])
        np.testing.assert_array_equal(filled(item.ContourSequence, scan.affine, label.shape), mask)


def test_a_structure_set_names_the_image_of_each_contour(tmp_path):
    paths = write_series(tmp_path / "in", some_voxels(SHAPE))
    source, scan = opened(tmp_path / "in")
    write_rtstruct(
        some_label(), scan.affine, tmp_path / "rt.dcm", source=source, segments=region_segments(REGIONS), **MODEL
    )
    result = pydicom.dcmread(tmp_path / "rt.dcm")
    heights = {
        pydicom.dcmread(path).SOPInstanceUID: float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in paths
    }
    for contour in result.ROIContourSequence[0].ContourSequence:
        image = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        assert float(contour.ContourData[2]) == pytest.approx(heights[image], abs=1e-3)
    (frame,) = result.ReferencedFrameOfReferenceSequence
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert len(series.ContourImageSequence) == len(paths)
    assert result.StructureSetDescription == "not a medical device"


@pytest.mark.parametrize("write", [write_dicom_seg, write_rtstruct])
def test_what_cannot_be_written_is_said(tmp_path, write):
    paths = write_series(tmp_path / "in", some_voxels(SHAPE))
    source, scan = opened(tmp_path / "in")
    more = {"segments": region_segments(REGIONS), **MODEL}
    target = tmp_path / "a.dcm"
    with pytest.raises(DataError, match="the mask is empty"):
        write(np.zeros(SHAPE, np.uint8), scan.affine, target, source=source, **more)
    moved = scan.affine.copy()
    moved[0, 3] += 1
    with pytest.raises(DataError, match="not where they were read"):
        write(some_label(), moved, target, source=source, **more)
    fewer = ScanSource(source.path, source.files[:-1], source.series_uid)
    with pytest.raises(DataError, match="not where they were read"):
        write(some_label(), scan.affine, target, source=fewer, **more)
    paths[0].unlink()
    with pytest.raises(DataError, match="a file is gone"):
        write(some_label(), scan.affine, target, source=source, **more)
    assert not target.exists()


def test_the_series_needs_a_frame_of_reference(tmp_path):
    write_series(tmp_path / "in", some_voxels(SHAPE), FrameOfReferenceUID="")
    source, scan = opened(tmp_path / "in")
    with pytest.raises(DataError, match="no frame of reference"):
        write_dicom_seg(
            some_label(), scan.affine, tmp_path / "a.dcm", source=source, segments=region_segments(REGIONS), **MODEL
        )
