import hashlib
import os
import zipfile

import numpy as np
import pytest
import SimpleITK
from dicom_files import grid, some_voxels, write_series

from medseg.errors import DataError
from medseg.inference.changes import TOUCHED, change_of, fingerprints
from medseg.inference.fingerprints import fingerprint, sha256_of_source
from medseg.reading import ScanSource, read_source
from medseg.reading.dicom import find_series
from medseg.writing import write_nifti

VOXELS = some_voxels((9, 8, 7))


def nifti(folder):
    write_nifti(VOXELS, grid(), folder / "a.nii.gz")
    return ScanSource(folder / "a.nii.gz")


def plain_nifti(folder):
    write_nifti(VOXELS, grid(), folder / "a.nii")
    return ScanSource(folder / "a.nii")


def header_and_voxels(folder):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS.T), str(folder / "a.mhd"))
    return ScanSource(folder / "a.mhd")


def series(folder):
    write_series(folder / "ct", VOXELS, grid())
    return find_series(folder)[0].source


def series_in_zip(folder):
    write_series(folder / "ct", VOXELS, grid())
    with zipfile.ZipFile(folder / "ct.zip", "w") as archive:
        for path in sorted((folder / "ct").iterdir()):
            archive.write(path, f"ct/{path.name}")
            path.unlink()
    return find_series(folder / "ct.zip")[0].source


KINDS = [nifti, plain_nifti, header_and_voxels, series, series_in_zip]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_source_has_the_digest_that_reading_it_gives(tmp_path, kind):
    source = kind(tmp_path)
    assert sha256_of_source(source) == read_source(source).sha256 != ""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_fingerprint_stays_until_any_file_changes(tmp_path, kind):
    source = kind(tmp_path)
    before, digest = fingerprints([source]), [read_source(source).sha256]

    def change():
        return change_of([source], before, digest, verify=False)

    assert change() == ""
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in files}
    for path in files:
        os.utime(path, ns=(1, 1))
        assert change() == TOUCHED
        os.utime(path, ns=(times[path], times[path]))
        assert change() == ""
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(times[path], times[path]))
        assert change() == "its scan has changed"
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(times[path], times[path]))
        assert change() == ""


def test_no_name_of_a_file_is_in_a_fingerprint(tmp_path):
    write_nifti(VOXELS, grid(), tmp_path / "CANARY.nii.gz")
    assert "CANARY" not in str(fingerprint(ScanSource(tmp_path / "CANARY.nii.gz")).as_json())


def test_one_file_has_its_own_digest(tmp_path):
    source = nifti(tmp_path)
    assert sha256_of_source(source) == hashlib.sha256(source.path.read_bytes()).hexdigest()


def test_what_cannot_be_read_has_no_fingerprint(tmp_path):
    with pytest.raises(FileNotFoundError):
        fingerprint(ScanSource(tmp_path / "gone.nii.gz"))
    source = series_in_zip(tmp_path)
    source.path.write_bytes(source.path.read_bytes()[:500])
    with pytest.raises(DataError, match="the zip is not whole; copy it again"):
        sha256_of_source(source)


def test_two_series_of_one_zip_differ(tmp_path):
    write_series(tmp_path / "a", VOXELS, grid(), name="a{:03d}.dcm", SeriesInstanceUID="1.2.3.5")
    write_series(tmp_path / "b", VOXELS, grid(), name="b{:03d}.dcm", SeriesInstanceUID="1.2.3.6")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for path in sorted([*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]):
            archive.write(path, path.name)
    one, other = (found.source for found in find_series(tmp_path / "both.zip"))
    assert fingerprint(one).ends != fingerprint(other).ends
    assert np.array_equal(read_source(one).voxels, read_source(other).voxels)
    assert sha256_of_source(one) != sha256_of_source(other)
