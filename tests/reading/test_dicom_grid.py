"""Where the voxels of a DICOM series lie: landmarks keep their place in the patient, whatever its directions."""

from itertools import permutations, product

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_files import as_mr, decimal, enhanced, grid, save, some_voxels, write_series

from medseg.errors import DataError
from medseg.reading import ScanSource, read_header, read_scan, read_source
from medseg.reading.dicom import find_series, read_series

ORIENTATIONS = [
    (axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)
]  # 48: every way to lay the axes of a grid along the body's
LANDMARKS = [(0, 0, 0), (6, 0, 0), (0, 4, 0), (0, 0, 3), (6, 4, 3), (2, 3, 1)]


def rotation(*degrees):
    """Product of turns about the three world axes."""
    turns = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        turns = turns @ turn
    return turns


def read_only(folder):
    (series,) = find_series(folder)
    return read_series(series.source), series


def assert_landmarks_stay(scan, voxels, affine, *, tolerance=1e-4):
    for landmark in LANDMARKS:
        (place,) = np.argwhere(scan.voxels == voxels[landmark])
        world = scan.affine @ (*place, 1)
        np.testing.assert_allclose(world, affine @ (*landmark, 1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("oblique", [False, True])
def test_landmarks_keep_their_place_in_all_48_orientations(tmp_path, oblique):
    voxels = some_voxels()
    for number, (axes, signs) in enumerate(ORIENTATIONS):
        laid = np.zeros((3, 3))
        laid[axes, range(3)] = signs
        affine = grid(rotation=rotation(12, -7, 23) @ laid if oblique else laid)
        folder = tmp_path / str(number)
        write_series(folder, voxels, affine)
        scan, series = read_only(folder)
        assert_landmarks_stay(scan, voxels, affine)
        assert scan.voxels.dtype == np.int16
        assert np.linalg.det(scan.affine[:3, :3]) > 0  # slices follow the right-handed normal
        np.testing.assert_allclose(series.spacing_mm, (0.8, 0.9, 2.5), atol=1e-6)


@pytest.mark.parametrize("turn", [(0, 0, 0), (90, 0, 0), (0, 90, 0), (180, 0, 0), (12, -7, 23)])
def test_grid_and_voxels_are_those_of_simpleitk(tmp_path, turn):
    paths = write_series(tmp_path, affine=grid(rotation=rotation(*turn)))
    scan, _ = read_only(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    peer = reader.Execute()
    assert len(paths) == peer.GetSize()[2]
    np.testing.assert_array_equal(scan.voxels, sitk.GetArrayFromImage(peer).T)
    for corner in [(0, 0, 0), (6, 4, 3), (6, 0, 1)]:
        left, posterior, superior = peer.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose((scan.affine @ (*corner, 1))[:3], (-left, -posterior, superior), atol=1e-4)


@pytest.mark.parametrize(
    ("turn", "plane"),
    [((0, 0, 0), "axial"), ((90, 0, 0), "coronal"), ((0, 90, 0), "sagittal"), ((45, 0, 0), "oblique")],
)
def test_the_plane_is_named_by_the_normal(tmp_path, turn, plane):
    write_series(tmp_path, affine=grid(rotation=rotation(*turn)))
    assert read_only(tmp_path)[1].orientation == plane


def test_files_of_a_source_are_sorted_by_position_and_a_source_by_uid_reads_alike(tmp_path):
    write_series(tmp_path)
    scan, series = read_only(tmp_path)
    heights = [float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in series.source.files]
    assert heights == sorted(heights)
    again = read_source(ScanSource(tmp_path, series_uid="1.2.3.4"))
    np.testing.assert_array_equal(again.voxels, scan.voxels)
    assert again.sha256 == scan.sha256
    np.testing.assert_array_equal(read_scan(tmp_path).voxels, scan.voxels)


def test_the_header_alone_gives_grid_type_and_memory(tmp_path):
    write_series(tmp_path)
    scan, series = read_only(tmp_path)
    header = read_header(series.source)
    assert header.shape == scan.voxels.shape
    assert header.voxel_type == scan.voxels.dtype.name
    assert header.bytes == scan.voxels.nbytes
    np.testing.assert_array_equal(header.affine, scan.affine)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
@pytest.mark.parametrize("slopes", [None, [1, 2, 3, 1]])
def test_enhanced_ct_is_one_scan_by_its_frames_own_places_and_rescales(tmp_path, order, slopes):
    voxels, affine = some_voxels(), grid(rotation=rotation(3, 5, 8))
    if slopes:
        voxels = (voxels.astype(np.int32) + 1024) // np.asarray(slopes) * np.asarray(slopes) - 1024
    save(enhanced(voxels, affine, order=order, slopes=slopes), tmp_path / "ct.dcm")
    scan, series = read_only(tmp_path)
    np.testing.assert_array_equal(scan.voxels, voxels)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
    assert (series.frames, series.slices, series.kernel) == (4, 4, "Br40")


def test_a_small_error_of_rounded_positions_is_accepted_and_a_larger_one_said(tmp_path):
    def rounded(dataset, index):
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, decimal(float(z) + (0.05 if index == 1 else 0))]

    write_series(tmp_path, edit=rounded)
    scan, _ = read_only(tmp_path)
    assert scan.warnings == ("slices lie up to 0.05 mm from even spacing",)
    np.testing.assert_allclose(scan.affine, grid(), atol=1e-4)


def test_a_tilt_below_half_a_degree_stays_in_the_affine(tmp_path):
    affine = grid()
    affine[1, 2] = 0.02  # 0.46 degrees at 2.5 mm
    voxels = some_voxels()
    write_series(tmp_path, voxels, affine)
    scan, _ = read_only(tmp_path)
    assert_landmarks_stay(scan, voxels, affine)
    assert scan.warnings == ("the axes are 0.5 degrees from right angles (a tilted gantry?); used as they are",)


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    affine = grid()
    affine[1, 2] = 2.5 * np.tan(np.radians(12))
    write_series(tmp_path, affine=affine)
    (series,) = find_series(tmp_path)
    with pytest.raises(DataError, match=r"^DICOM series: gantry tilt of 12\.0 degrees: .* resample it upright first"):
        read_series(series.source)
    assert "gantry tilt" in series.problems[0]


def test_an_mr_without_a_rescale_keeps_its_values(tmp_path):
    voxels = some_voxels()
    write_series(tmp_path, voxels, edit=as_mr)
    scan, series = read_only(tmp_path)
    np.testing.assert_array_equal(scan.voxels, voxels + 1024)
    assert series.modality == "MR"
