import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg import writing
from medseg.errors import DataError
from medseg.writing import aside, free_mb, write_compressed, write_nifti

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
    real_write = writing._write

    def damaged_write(content, path, *, compressed):
        real_write(content, path, compressed=compressed)
        damage(path)

    monkeypatch.setattr(writing, "_write", damaged_write)
    with pytest.raises(DataError, match=message):
        write_nifti(label, ROTATED, tmp_path / "label.nii.gz")
    assert not list(tmp_path.iterdir())


def test_more_bytes_than_were_written_do_not_read_back(tmp_path, label, monkeypatch):
    real_write = writing._write

    def longer_write(content, path, *, compressed):
        real_write(content, path, compressed=compressed)
        path.write_bytes(path.read_bytes() + b"0")

    monkeypatch.setattr(writing, "_write", longer_write)
    with pytest.raises(DataError, match=r"label.nii: reads back differently than written"):
        write_nifti(label, ROTATED, tmp_path / "label.nii")


@pytest.mark.parametrize("name", ["label.nii", "label.nii.gz"])
def test_full_disk_is_named_and_keeps_the_old_file(small_disk, label, name):
    write_nifti(label, ROTATED, small_disk / name)
    before = (small_disk / name).read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 100)).astype(np.uint8)
    with pytest.raises(
        DataError, match=rf"^{name}: cannot be written \(No space left on device\); free space or choose"
    ):
        write_nifti(noise, ROTATED, small_disk / name)
    assert [path.name for path in small_disk.iterdir()] == [name]
    assert (small_disk / name).read_bytes() == before
    with pytest.raises(DataError, match=r"^other.nii: cannot be written \(No space left"):
        write_nifti(noise, ROTATED, small_disk / "other.nii")
    assert not (small_disk / "other.nii").exists()


def test_free_space_is_that_of_the_disk_even_before_the_folder_is_made(small_disk):
    assert free_mb(small_disk / "not" / "yet") == 1
    assert free_mb(small_disk.parent) > 1
    (small_disk / "filled").write_bytes(bytes(600_000))
    assert free_mb(small_disk) == 0


def test_disk_that_cannot_be_asked_is_named(tmp_path, monkeypatch):
    def gone(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", gone)
    with pytest.raises(DataError, match=r"^out: its disk cannot be asked \(Stale file handle\); check the path"):
        free_mb(tmp_path / "out")


def test_rename_waits_for_a_viewer_to_let_go(tmp_path, label, monkeypatch):
    """As on Windows, where a file that is open elsewhere cannot be replaced."""
    refusals = iter([PermissionError(13, "Access is denied"), PermissionError(13, "Access is denied")])
    real_replace = Path.replace

    def held_for_a_while(self, target):
        for refusal in refusals:
            raise refusal
        return real_replace(self, target)

    monkeypatch.setattr(writing, "RENAME_WAIT_S", 0)
    monkeypatch.setattr(Path, "replace", held_for_a_while)
    write_nifti(label, ROTATED, tmp_path / "label.nii.gz")
    assert np.array_equal(np.asanyarray(nib.load(tmp_path / "label.nii.gz").dataobj), label)


def test_file_that_a_viewer_never_lets_go_is_named(tmp_path, label, monkeypatch):
    (tmp_path / "label.nii.gz").write_bytes(b"seen by a viewer")

    def held(self, target):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(writing, "RENAME_WAIT_S", 0)
    monkeypatch.setattr(Path, "replace", held)
    with pytest.raises(DataError, match=r"label.nii.gz: cannot be written \(Access is denied\)"):
        write_nifti(label, ROTATED, tmp_path / "label.nii.gz")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"seen by a viewer"]


def test_bytes_hold_neither_time_nor_name(tmp_path, label):
    write_nifti(label, ROTATED, tmp_path / "canary.nii.gz")
    content = (tmp_path / "canary.nii.gz").read_bytes()
    assert content[4:8] == bytes(4)  # gzip's time
    assert content[3] & 8 == 0  # gzip's mark of a name
    assert b"canary" not in content


def test_a_file_that_is_compressed_leaves_neither_time_nor_name(tmp_path):
    source = tmp_path / "source.nii"
    source.write_bytes(bytes(range(256)) * 99)
    targets = [tmp_path / name for name in ("canary.nii.gz", "other.nii.gz")]
    for target in targets:
        write_compressed(source, target)
    first, second = (target.read_bytes() for target in targets)
    assert first == second
    assert first[3:8] == bytes(5)  # no mark of a name, no time
    assert gzip.decompress(first) == source.read_bytes()


def test_what_nifti_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"mask.nii.gz: NIfTI cannot hold it \(.*\); write whole numbers or float32"):
        write_nifti(np.zeros((2, 3, 4), dtype=bool), ROTATED, tmp_path / "mask.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [">i2", ">f4"])
def test_big_endian_voxels_are_written_as_the_header_says(tmp_path, label, dtype):
    write_nifti(label.astype(dtype), ROTATED, tmp_path / "label.nii")
    assert np.array_equal(np.asanyarray(nib.load(tmp_path / "label.nii").dataobj), label)


def test_channels_are_written_on_the_fourth_axis(tmp_path):
    voxels = np.random.default_rng(0).random((3, 4, 5, 2), dtype=np.float32)
    write_nifti(voxels, ROTATED, tmp_path / "probabilities.nii.gz")
    assert np.array_equal(nib.load(tmp_path / "probabilities.nii.gz").get_fdata(dtype=np.float32), voxels)
