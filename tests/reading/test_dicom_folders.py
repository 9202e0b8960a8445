"""Which files make which series: in folders as people have them, and in zips that may mean harm."""

import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import CANARY, capture, enhanced, grid, report, save, some_voxels, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medseg.errors import DataError
from medseg.reading import read_scan, source_files
from medseg.reading.dicom import find_series, only_series, read_series
from medseg.reading.dicom.files import open_files


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def volumes(folder):
    return [series for series in find_series(folder) if not series.kind]


def test_two_series_and_two_patients_in_one_folder_are_three_cases(tmp_path):
    write_series(tmp_path, name="a{}.dcm")
    write_series(tmp_path, some_voxels(seed=1), name="b{}.dcm", SeriesInstanceUID="1.2.3.5", SeriesNumber=3)
    write_series(tmp_path, some_voxels(seed=2), name="c{}.dcm", PatientID="p2")  # a copied UID
    found = volumes(tmp_path)
    assert [(series.patient, series.source.series_uid) for series in found] == [
        ("p1", "1.2.3.4"), ("p1", "1.2.3.5"), ("p2", "1.2.3.4"),
    ]  # fmt: skip
    for seed, series in enumerate(found):
        np.testing.assert_array_equal(read_series(series.source).voxels, some_voxels(seed=seed))


def test_a_series_spread_over_folders_is_one_whose_place_is_their_common_folder(tmp_path):
    paths = write_series(tmp_path / "pa" / "se1")
    (tmp_path / "pa" / "se2").mkdir()
    for path in paths[:2]:
        path.rename(tmp_path / "pa" / "se2" / path.name)
    (series,) = find_series(tmp_path)
    assert series.source.path == tmp_path / "pa"
    assert sorted(source_files(series.source)) == sorted((tmp_path / "pa").rglob("*.dcm"))
    np.testing.assert_array_equal(read_series(series.source).voxels, some_voxels())


@pytest.mark.parametrize("place", ["scans", ".", "scans/one"])
def test_a_folder_may_be_named_from_where_one_stands(tmp_path, monkeypatch, place):
    write_series(tmp_path / "scans" / "one")
    monkeypatch.chdir(tmp_path)
    (series,) = volumes(Path(place))
    np.testing.assert_array_equal(read_series(series.source).voxels, some_voxels())
    assert all(path.is_file() for path in source_files(series.source))
    np.testing.assert_array_equal(read_scan(Path("scans/one")).voxels, some_voxels())


def test_what_is_no_dicom_is_passed_over(tmp_path):
    write_series(tmp_path)
    (tmp_path / "notes.txt").write_text("DICM")
    (tmp_path / "picture.jpg").write_bytes(os.urandom(3000))
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"\x08\0")
    (tmp_path / "looks").write_bytes(b"\x08\0\x05\0CS" + os.urandom(3000))
    (tmp_path / ".hidden.dcm").write_bytes(b"")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "loop").symlink_to(tmp_path)
    (series,) = find_series(tmp_path)
    assert series.problems == ()
    assert series.slices == 4


def test_a_link_that_leads_nowhere_may_be_a_lost_slice(tmp_path):
    paths = write_series(tmp_path, seed=None)
    paths[3].unlink()
    paths[3].symlink_to(tmp_path / "archived" / "IM0003.dcm")
    (series,) = find_series(tmp_path)
    assert series.problems == (
        "IM0003.dcm beside the series cannot be read (No such file or directory); copy it again; if it is no slice, "
        "move it away",
    )


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    def walk(_folder, onerror):
        onerror(PermissionError(13, "Permission denied", "secret"))

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DataError, match=r"a folder below cannot be listed \(Permission denied\)"):
        find_series(tmp_path)


def test_localizers_and_other_objects_are_listed_with_what_they_are(tmp_path):
    write_series(tmp_path, edit=None)
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path, name="s{}.dcm", affine=grid(rotation=np.eye(3)[[0, 2, 1]]), drop=(1, 2, 3), ImageType=scout)
    save(report(), tmp_path / "dose.dcm")
    save(capture(), tmp_path / "screen.dcm")
    kinds = {
        "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation (SEG)",
        "1.2.840.10008.5.1.4.1.1.481.3": "contours (RTSTRUCT)",
        "1.2.840.10008.5.1.4.1.1.11.1": "a presentation state",
        "1.2.840.10008.5.1.4.1.1.1.1": "Digital X-Ray Image Storage - For Presentation",
        "1.3.12.2.1107.5.9.1": "of the class 1.3.12.2.1107.5.9.1",
    }
    for number, uid in enumerate(kinds):
        save(report(SOPClassUID=uid, SeriesInstanceUID=f"1.7.{number}"), tmp_path / f"x{number}.dcm")
    said = " | ".join(series.kind for series in find_series(tmp_path))
    for kind in ("a localizer", "a report (such as a dose report)", "a secondary capture", *kinds.values()):
        assert kind in said
    (volume,) = volumes(tmp_path)
    assert (volume.slices, volume.problems) == (4, ())  # the localizer of the same series UID is not among them
    assert only_series(tmp_path) == volume.source
    np.testing.assert_array_equal(read_scan(tmp_path).voxels, some_voxels())


def test_a_dicomdir_is_passed_over_and_its_references_are_not_followed(tmp_path):
    write_series(tmp_path / "OUTSIDE", drop=(1, 2, 3), name="IM0")
    directory, record = report(), Dataset()
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    record.ReferencedFileID = ["XX", "OUTSIDE", "IM0"]
    directory.DirectoryRecordSequence = Sequence([record])
    path = save(directory, tmp_path / "inside" / "DICOMDIR")
    path.write_bytes(path.read_bytes().replace(b"XX\\", b"..\\"))
    assert b"..\\OUTSIDE\\IM0" in path.read_bytes()
    assert find_series(tmp_path / "inside") == []
    del directory.SOPClassUID  # which the standard wants in the file's meta information alone
    pydicom.dcmwrite(path, directory)
    assert find_series(tmp_path / "inside") == []


def test_an_enhanced_ct_beside_a_plain_one_is_a_series_of_its_own(tmp_path):
    write_series(tmp_path)
    whole = enhanced(some_voxels(seed=1), grid())
    whole.SeriesInstanceUID = "1.2.3.6"
    save(whole, tmp_path / "multi")
    assert [series.frames for series in volumes(tmp_path)] == [0, 4]


def test_a_zip_is_read_in_place_like_its_folder(tmp_path):
    write_series(tmp_path / "scans" / "a")
    write_series(tmp_path / "scans" / "b", some_voxels(seed=1), SeriesInstanceUID="1.2.3.5")
    path = zipped(tmp_path / "scans", tmp_path / "scans.zip")
    before = sorted(tmp_path.rglob("*"))
    for one, other in zip(find_series(path), find_series(tmp_path / "scans"), strict=True):
        assert one.source.path == path
        assert not any(file.is_absolute() for file in one.source.files)
        assert source_files(one.source) == (path,)
        inside, outside = read_series(one.source), read_series(other.source)
        np.testing.assert_array_equal(inside.voxels, outside.voxels)
        np.testing.assert_array_equal(inside.affine, outside.affine)
        assert inside.sha256 == outside.sha256
    assert sorted(tmp_path.rglob("*")) == before


def test_zips_below_a_folder_are_looked_into_and_a_broken_one_is_said(tmp_path):
    write_series(tmp_path / "made")
    zipped(tmp_path / "made", tmp_path / "good.zip")
    (tmp_path / "bad.zip").write_bytes((tmp_path / "good.zip").read_bytes()[:500])
    found = find_series(tmp_path)
    assert [(series.source.path.name, series.slices) for series in found] == [
        ("made", 4),
        ("bad.zip", 0),
        ("good.zip", 4),
    ]
    assert found[1].problems == ("the zip is not whole; copy it again",)


def test_a_member_that_climbs_out_of_the_zip_touches_nothing_outside(tmp_path):
    (dicom,) = write_series(tmp_path / "made", drop=(1, 2, 3))
    secret = tmp_path / "secret"
    secret.write_text("keep")
    path = tmp_path / "slip" / "slip.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../secret", dicom.read_bytes())
        archive.writestr("/secret", dicom.read_bytes())
        archive.writestr(str(tmp_path / "made" / dicom.name), "no DICOM")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for series in find_series(path):
        with pytest.raises(DataError):
            read_series(series.source)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert secret.read_text() == "keep"


def test_a_zip_bomb_is_refused_by_what_it_declares(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.reading.dicom.files.SMALL_BYTES", 1 << 20)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.dcm", "w") as member:
        for _ in range(4):
            member.write(bytes(8 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"the zip would unpack to 0.0 GB, over 200 times its size"):
        find_series(path)


def test_a_member_that_unpacks_to_more_than_it_declares_is_cut_there(tmp_path):
    """The directory of the zip lies about a size; what is unpacked stays within it, and the file is refused."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(5_000_000))
    lying = content.getvalue().replace((5_000_000).to_bytes(4, "little"), (5_000).to_bytes(4, "little"))
    (tmp_path / "lie.zip").write_bytes(lying)
    with open_files(tmp_path / "lie.zip") as files, pytest.raises(zipfile.BadZipFile):
        files.open(Path("a.dcm")).read()
    (series,) = find_series(tmp_path / "lie.zip")
    assert series.problems


def test_zips_in_zips_are_not_opened(tmp_path):
    write_series(tmp_path / "made")
    inner = zipped(tmp_path / "made", tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    assert find_series(tmp_path / "outer.zip") == []


def test_too_many_files_and_encrypted_ones_are_refused(tmp_path, monkeypatch):
    write_series(tmp_path / "made")
    path = zipped(tmp_path / "made", tmp_path / "a.zip")
    monkeypatch.setattr("medseg.reading.dicom.files.MOST_MEMBERS", 3)
    with pytest.raises(DataError, match=r"the zip has 4 files, and at most 3 are read; split it"):
        find_series(path)
    monkeypatch.undo()
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 8] |= 1  # the flag of an encrypted member
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"the zip is encrypted; unpack it with its password first"):
        find_series(path)


def test_a_damaged_member_of_a_zip_is_refused(tmp_path):
    write_series(tmp_path / "made", some_voxels((65, 48, 4)))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "made").iterdir()):
            archive.write(file, file.name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF  # a flipped bit, which only the checksum tells
    path.write_bytes(content)
    (series,) = find_series(path)
    with pytest.raises(DataError, match=r"^DICOM series: .*copy it again"):
        read_series(series.source)


def test_no_folder_or_zip_is_said(tmp_path):
    with pytest.raises(DataError, match=r"^no folder or zip of DICOM files; check the path"):
        find_series(tmp_path / "nowhere")


def test_what_a_series_says_of_itself(tmp_path):
    write_series(tmp_path, SeriesDescription="Bauch ven\u00f6s\r\n=1+1", ContrastBolusAgent="Agent 300", SeriesNumber=7)
    (series,) = find_series(tmp_path)
    assert series.description == "Bauch ven\u00f6s =1+1"
    assert (series.contrast, series.kernel, series.modality, series.number) == ("Agent 300", "B30f", "CT", 7)
    assert series.thickness_mm == 2.5
    assert CANARY not in repr(series)


def test_thousands_of_files_are_listed_in_seconds(tmp_path):
    """0.6 ms a file here; the bound leaves room for a slow machine."""
    for number in range(20):
        write_series(tmp_path / f"s{number}", some_voxels((8, 8, 20)), SeriesInstanceUID=f"1.2.3.{number + 10}")
    start = time.process_time()
    found = find_series(tmp_path)
    assert time.process_time() - start < 400 * 0.006
    assert [series.slices for series in found] == [20] * 20
