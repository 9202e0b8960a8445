import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.errors import DataError
from medseg.writing import aside, write_nifti

ROTATED = np.array([[-1.2, 0.0, 0.0, 33.25], [0.0, 1.5, -1.2, -10.5], [0.0, 0.9, 2.0, 7.0], [0, 0, 0, 1]])
SHEARED = ROTATED + np.array([[0, 0.3, 0, 0]] + [[0.0] * 4] * 3)


@pytest.fixture
def label():
    return np.random.default_rng(0).integers(0, 3, (7, 5, 9)).astype(np.uint8)


def test_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "table.csv"
    with aside(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".csv"
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_failure_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "table.csv"
    target.write_text("old")

    def fail():
        with aside(target) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["label.nii", "label.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_nibabel_reads_what_was_written(tmp_path, label, name, dtype):
    write_nifti(label.astype(dtype), ROTATED, tmp_path / name)
    image = nib.load(tmp_path / name)
    assert image.get_data_dtype() == dtype
    assert np.array_equal(np.asanyarray(image.dataobj), label)
    assert np.array_equal(image.affine, ROTATED.astype(np.float32))
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 1
    assert np.allclose(image.get_qform(), ROTATED, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_simpleitk_sees_the_same_grid(tmp_path, label):
    write_nifti(label, ROTATED, tmp_path / "label.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "label.nii.gz"))
    for index in [(0, 0, 0), (6, 4, 8)]:
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
        expected = nib.affines.apply_affine(ROTATED, index)
        assert np.allclose((-left, -posterior, superior), expected, atol=1e-4)
        assert image[index] == label[index]


def test_sheared_grid_goes_into_the_sform_alone(tmp_path, label):
    write_nifti(label, SHEARED, tmp_path / "label.nii.gz")
    image = nib.load(tmp_path / "label.nii.gz")
    assert image.get_qform(coded=True)[1] == 0
    assert np.allclose(image.affine, SHEARED, atol=1e-6)


def test_equal_input_gives_equal_bytes_whatever_the_memory_order_and_name(tmp_path, label):
    write_nifti(label, ROTATED, tmp_path / "a.nii.gz")
    write_nifti(np.asfortranarray(label), ROTATED, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_nan_is_written_as_it_is(tmp_path):
    voxels = np.full((2, 3, 4), np.nan, dtype=np.float32)
    write_nifti(voxels, ROTATED, tmp_path / "probability.nii.gz")
    assert np.isnan(nib.load(tmp_path / "probability.nii.gz").get_fdata()).all()


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def change_voxel(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"label.nii.gz: cannot be written \(.*end-of-stream.*; free space or choose another folder"),
        (change_voxel, "label.nii.gz: reads back differently than written; check the disk"),
    ],
)
def test_what_does_not_read_back_gets_no_name(tmp_path, label, monkeypatch, damage, message):
    real_save = nib.save

    def damaged_save(image, path):
        real_save(image, path)
        damage(path)

    monkeypatch.setattr(nib, "save", damaged_save)
    with pytest.raises(DataError, match=message):
        write_nifti(label, ROTATED, tmp_path / "label.nii.gz")
    assert not list(tmp_path.iterdir())


def test_full_disk_is_named_and_keeps_the_old_file(tmp_path, label, monkeypatch):
    write_nifti(label, ROTATED, tmp_path / "label.nii.gz")
    before = (tmp_path / "label.nii.gz").read_bytes()

    def fail(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        write_nifti(label, SHEARED, tmp_path / "label.nii.gz")
    assert (tmp_path / "label.nii.gz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
