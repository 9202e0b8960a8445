import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError
from medseg.reading import read_channels, read_grid, read_label, read_scan, scan_stem

AFFINE = np.array([[-0.75, 0.0, 0.0, 33.25], [0.0, 1.5, 0.0, -10.5], [0.0, 0.0, 2.5, 7.0], [0, 0, 0, 1]])
SHAPE = (5, 7, 4)
VOXELS = np.random.default_rng(0).integers(-1000, 1500, (*SHAPE, 3)).astype(np.int16)


def save(path, voxels, affine=AFFINE):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("liver_04.nii.gz", "liver_04"),
        ("a/b/liver_04.nii", "liver_04"),
        ("LIVER.NII.GZ", "LIVER"),
        ("v1.2.nrrd", "v1.2"),
        ("x.mha", "x"),
        ("x.mhd", "x"),
        ("x.dcm", "x.dcm"),
        ("x.gz", "x.gz"),
    ],
)
def test_stem_drops_only_a_scan_suffix(name, stem):
    assert scan_stem(name) == stem


@pytest.mark.parametrize("reader", [read_scan, read_label, read_grid])
def test_missing_file_and_unknown_format_are_refused(tmp_path, reader):
    with pytest.raises(DataError, match=r"scan.nii.gz: no such file; check the path"):
        reader(tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match=r"scan.npy: not a scan file medseg reads .*mha.*; convert it first"):
        reader(tmp_path / "scan.npy")


@pytest.mark.parametrize(("voxels", "axes"), [(VOXELS, "4D"), (VOXELS[:, :, 0, 0], "2D")])
def test_what_is_not_3d_is_refused(tmp_path, voxels, axes):
    with pytest.raises(DataError, match=f"scan.nii: {axes}, shape .* where one 3D scan is wanted; export one volume"):
        read_scan(save(tmp_path / "scan.nii", voxels))


def test_one_channel_is_one_file_in_a_list_or_not(tmp_path):
    path = save(tmp_path / "scan.nii", VOXELS[..., 0])
    for image in (path, str(path), [str(path)]):
        (scan,) = read_channels(image, ["ct"])
        assert np.array_equal(scan.voxels, VOXELS[..., 0])


def test_channels_in_files_keep_their_order_and_grids(tmp_path):
    other = np.diag([3.0, 3.0, 5.0, 1.0])
    paths = [
        save(tmp_path / "b.nii.gz", VOXELS[..., 1]),
        save(tmp_path / "a.nii.gz", VOXELS[:3, ..., 0], other),
    ]
    first, second = read_channels(paths, ["portal", "arterial"])
    assert np.array_equal(first.voxels, VOXELS[..., 1])
    assert np.array_equal(second.voxels, VOXELS[:3, ..., 0])
    assert np.array_equal(second.affine, other)


def test_channels_on_the_fourth_axis_are_split(tmp_path):
    path = save(tmp_path / "scan.nii", VOXELS)
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    scans = read_channels(path, ["flair", "t1", "t2"])
    for channel, scan in enumerate(scans):
        assert np.array_equal(scan.voxels, VOXELS[..., channel])
        assert np.array_equal(scan.affine, AFFINE)
    assert [len(scan.warnings) for scan in scans] == [1, 0, 0]


def test_missing_channels_are_named(tmp_path):
    path = save(tmp_path / "scan.nii", VOXELS)
    message = "scan.nii: 3 of 5 channels, 't1c', 'adc' missing; add its file or volume"
    with pytest.raises(DataError, match=message):
        read_channels(path, ["flair", "t1", "t2", "t1c", "adc"])
    with pytest.raises(DataError, match=r"one.nii: 1 of 2 channels, 'arterial' missing"):
        read_channels([save(tmp_path / "one.nii", VOXELS[..., 0])], ["portal", "arterial"])
    with pytest.raises(DataError, match=r"one.nii: 2 of 3 channels, 'late' missing"):
        read_channels([tmp_path / "one.nii"] * 2, ["portal", "arterial", "late"])


def test_too_many_channels_are_refused(tmp_path):
    path = save(tmp_path / "scan.nii", VOXELS)
    with pytest.raises(DataError, match=r"scan.nii: 3 volumes for the channels \['flair', 't1'\]; name each one"):
        read_channels(path, ["flair", "t1"])
    with pytest.raises(DataError, match=r"scan.nii: 2 volumes for the channels \['ct'\]; name each one"):
        read_channels([path, path], ["ct"])
    with pytest.raises(DataError, match=r"scan.nii: 4D"):
        read_channels(path, ["ct"])


@pytest.mark.parametrize(
    ("stored", "highest", "read"),
    [
        (np.uint8, 2, np.uint8),
        (np.int16, 255, np.uint8),
        (np.float32, 2, np.uint8),
        (np.float64, 117, np.uint8),
        (np.uint16, 256, np.int16),
        (np.int32, 70000, np.int32),
    ],
)
def test_label_is_whole_numbers_in_the_smallest_type(tmp_path, stored, highest, read):
    voxels = np.zeros(SHAPE, dtype=stored)
    voxels[1, 2, 3] = highest
    label = read_label(save(tmp_path / "label.nii.gz", voxels))
    assert label.voxels.dtype == read
    assert np.array_equal(label.voxels, voxels)


def test_negative_label_values_survive(tmp_path):
    voxels = np.zeros(SHAPE, dtype=np.float32)
    voxels[1, 2, 3] = -1
    label = read_label(save(tmp_path / "label.nii.gz", voxels))
    assert label.voxels.dtype == np.int16
    assert label.voxels[1, 2, 3] == -1


def test_fractions_are_no_label(tmp_path):
    voxels = np.zeros(SHAPE, dtype=np.float32)
    voxels[1, 2, :3] = 0.6
    with pytest.raises(DataError, match=r"label.nii.gz: 3 of 140 label voxels are fractions, .*without interpolation"):
        read_label(save(tmp_path / "label.nii.gz", voxels))
