import hashlib
import os
import sys
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from dicom_files import grid, some_voxels, write_series

from medseg.errors import ConfigError, DataError
from medseg.inference.cases import cases_in, check_out, list_cases

KEY = bytes(range(32))


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no scan, and never read here")


def ids_of(root, **options):
    return [case.case_id for case in cases_in(root, **{"channels": ["ct"], "key": KEY, **options})]


def outputs(case_ids, ending="_seg.nii.gz"):
    return [f"{case_id}{ending}" for case_id in case_ids]


def test_outputs_mirror_the_folders(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.nrrd", "deep/er/c.mha", "deep/a.nii")
    assert ids_of(tmp_path) == ["a", "b", "deep/a", "deep/er/c"]
    case = cases_in(tmp_path, channels=["ct"])[3]
    assert [source.path for source in case.sources] == [tmp_path / "deep/er/c.mha"]
    assert not case.keyed


def test_one_file_is_one_case(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    assert ids_of(tmp_path / "a.nii.gz") == ["a"]


def test_other_files_are_counted_and_hidden_ones_are_not_there(tmp_path):
    touch(tmp_path, "a.nii.gz", "notes.txt", "report.pdf", ".hidden.nii.gz", ".git/a.nii.gz", "._a.nii.gz", "x.png")
    found = list_cases(tmp_path, channels=["ct"])
    assert [case.case_id for case in found.cases] == ["a"]
    assert found.passed_over == 3


def test_images_are_looked_for_by_models_of_images_only(tmp_path):
    touch(tmp_path, "a.png", "deep/b.JPG", "c.nii.gz")
    assert ids_of(tmp_path, unit="px") == ["a", "deep/b"]
    assert ids_of(tmp_path) == ["c"]


def test_nothing_to_segment_is_said(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=rf"scans '{tmp_path.name}': no file to segment in it \(\.nii\.gz.*DICOM\)"):
        ids_of(tmp_path)
    with pytest.raises(DataError, match="'none': no such file or folder; check the path"):
        ids_of(tmp_path / "none")
    with pytest.raises(DataError, match=r"notes\.txt: not a file that medseg segments"):
        ids_of(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="ids: is 'secret'; give default, original, pseudonym"):
        ids_of(tmp_path, ids="secret")


def test_two_formats_of_one_name_are_two_cases(tmp_path):
    touch(tmp_path, "a.nii.gz", "a.nii", "a.nrrd", "b.nii.gz")
    assert ids_of(tmp_path) == ["a.nii", "a.nii.gz", "a.nrrd", "b"]


def test_a_name_that_looks_like_a_told_apart_one_is_a_third(tmp_path):
    touch(tmp_path, "a.nii.gz", "a.nrrd", "a.nrrd.nii.gz")
    made = ids_of(tmp_path)
    assert len({id.casefold() for id in made}) == 3
    assert "a.nii.gz" in made


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Liver.nii.gz", "liver.nii.gz"),
        ("A/x.nii.gz", "a/x.nii.gz"),
        ("Gro\u00df.nii.gz", "GROSS.nii.gz"),
        ("M\u00fcller.nii.gz", "Mu\u0308ller.nii.gz"),  # composed and decomposed: one name on macOS
        ("a:b.nii.gz", "a_b.nii.gz"),
        ("CON.x.nii.gz", "_CON.x.nii.gz"),
        ("dir./x.nii.gz", "dir/x.nii.gz"),
        ("a_seg.nii.gz/b.nii.gz", "a.nii.gz"),  # a folder of the name of the other's mask
        ("report.csv/b.nii.gz", "b.nii.gz"),
        (f"{'x' * 240}.nii.gz", f"{'x' * 239}y.nii.gz"),
    ],
)
def test_two_scans_never_share_an_output_on_any_system(tmp_path, one, other):
    touch(tmp_path, one, other)
    made = ids_of(tmp_path)
    assert made == ids_of(tmp_path)
    folded = [unicodedata.normalize("NFD", name.casefold()) for name in outputs(made)]
    folded = [unicodedata.normalize("NFD", name.casefold()) for name in folded]
    assert len(set(folded)) == 2
    prefixes = {str(parent) for name in folded for parent in PurePosixPath(name).parents}
    assert not prefixes & {*folded, "report.csv", "lesions.csv", "run.json", "key.csv"}


@pytest.mark.parametrize(
    "name",
    [
        "CON", "nul.x", "COM1/a", "a:b", "a?b", 'a"b', "trailing./a", "space /a", "a\nb", "a\x1b[31mb", "a\\b",
        "a|b*c<d>", "=cmd()", "@x", "+1", "\u202e x", "\u65e5\u672c\u8a9e", "\U0001f480", "  two  spaces ", "...a",
        "x" * 240, "\u00fc" * 100, "-5",
    ],
)  # fmt: skip
def test_an_odd_name_makes_a_path_that_windows_takes_too(tmp_path, name):
    if name.startswith("."):
        name = f"b/{name[3:]}..."
    touch(tmp_path, f"{name}.nii.gz")
    (made,) = ids_of(tmp_path)
    (output,) = outputs([made])
    for part in output.split("/"):
        assert len(part.encode()) <= 230
        assert (not set(part) & set('<>:"|?*\\') and part.isprintable()) or "\u202e" in part
        assert part == part.rstrip(" .")
        assert not PureWindowsPath(part).is_reserved()
        assert not part.startswith(("=", "+", "@"))
    assert ".." not in PurePosixPath(output).parts
    assert not PurePosixPath(output).is_absolute()
    (tmp_path / "out" / output).parent.mkdir(parents=True)
    (tmp_path / "out" / output).write_bytes(b"mask")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's")
def test_a_name_that_is_no_text_can_be_written_to_a_report(tmp_path):
    for name in (b"a\xff.nii.gz", b"a\xfe.nii.gz"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    made = ids_of(tmp_path)
    assert len(set(made)) == 2
    for case_id in made:
        case_id.encode("utf-8")
    assert all(path.exists() for case in cases_in(tmp_path, channels=["ct"]) for path in [case.sources[0].path])


def test_plain_names_stay_as_they_are(tmp_path):
    names = ["Patient 7", "scan.2024", "liver-04_v2 (1)", "M\u00fcller", "\u65e5\u672c", "a,b;c'd", "100%", "~x"]
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    assert ids_of(tmp_path) == sorted(names)


def test_links_are_followed_once_and_never_in_circles(tmp_path):
    scans, elsewhere = tmp_path / "scans", tmp_path / "elsewhere"
    touch(scans, "real/a.nii.gz", "b.nii.gz")
    touch(elsewhere, "c.nii.gz", "deep/d.nii.gz")
    (scans / "linked").symlink_to(elsewhere)
    (scans / "again").symlink_to(scans / "real")  # met under its own name
    (scans / "real" / "up").symlink_to(scans)
    (scans / "top").symlink_to(tmp_path)  # holds SCANS itself
    (elsewhere / "deep" / "back").symlink_to(elsewhere)
    (scans / "circle").symlink_to(scans / "circle")
    (scans / "file.nii.gz").symlink_to(elsewhere / "c.nii.gz")
    assert ids_of(scans) == ["b", "file", "linked/c", "linked/deep/d", "real/a"]


def test_a_dangling_link_is_a_case_that_will_fail_and_a_pipe_is_none(tmp_path):
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.mkfifo(tmp_path / "pipe")
    assert ids_of(tmp_path) == ["gone"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may list every folder")
def test_a_folder_that_cannot_be_listed_is_a_case_that_fails(tmp_path):
    touch(tmp_path, "a.nii.gz", "closed/b.nii.gz")
    (tmp_path / "closed").chmod(0)
    try:
        closed = cases_in(tmp_path, channels=["ct"])[1]
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert closed.case_id == "closed"
    assert "cannot be listed (Permission denied)" in closed.problem


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    touch(tmp_path, "a.nii.gz", "closed/b.nii.gz")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    open_case, closed = cases_in(tmp_path, channels=["ct"])
    assert (open_case.case_id, open_case.problem) == ("a", "")
    assert closed.case_id == "closed"
    assert closed.problem == "the folder cannot be listed (Permission denied); allow it, or move it away"
    with pytest.raises(DataError, match=r"scans 'closed': the folder cannot be listed \(Permission denied\)"):
        cases_in(tmp_path / "closed", channels=["ct"])


def test_channels_of_a_case_are_found_by_their_number(tmp_path):
    touch(tmp_path, "x/a_0000.nii.gz", "x/a_0001.nii.gz", "b_0001.nii.gz", "c.nii.gz")
    cases = cases_in(tmp_path, channels=["t1", "flair"])
    assert [case.case_id for case in cases] == ["b", "c", "x/a"]
    names = [[source.path.name for source in case.sources] for case in cases]
    assert names == [["b_0000.nii.gz", "b_0001.nii.gz"], ["c.nii.gz"], ["a_0000.nii.gz", "a_0001.nii.gz"]]
    assert ids_of(tmp_path) == ["b_0001", "c", "x/a_0000", "x/a_0001"]


def test_pseudonyms_of_files_tell_nothing_and_stay(tmp_path):
    touch(tmp_path, "CANARY/a.nii.gz", "CANARY/a.nrrd", "b.nii.gz")
    cases = cases_in(tmp_path, channels=["ct"], ids="pseudonym", key=KEY)
    assert all(case.keyed for case in cases)
    assert all(len(case.case_id) == 15 and case.case_id.startswith("case-") for case in cases)
    assert ids_of(tmp_path, ids="pseudonym") == [case.case_id for case in cases]
    assert not set(ids_of(tmp_path, ids="pseudonym", key=b"other")) & {case.case_id for case in cases}
    touch(tmp_path, "c.nii.gz")
    assert {case.case_id for case in cases} < set(ids_of(tmp_path, ids="pseudonym"))


def test_an_out_among_the_scans_is_refused(tmp_path):
    scans = tmp_path / "scans"
    touch(scans, "a.nii.gz", "deep/b.nii.gz")
    (tmp_path / "link").symlink_to(scans)
    for out in (scans, scans / "out", scans / "deep" / "new", tmp_path / "link" / "out", scans / "deep" / ".." / "x"):
        with pytest.raises(ConfigError, match=r"lies inside .*: masks would be taken for scans; choose another OUT"):
            check_out(scans, out)
    with pytest.raises(ConfigError, match=r"lies inside .*: masks might be taken for scans; choose another OUT"):
        check_out(scans, tmp_path)
    with pytest.raises(ConfigError, match="is a file; OUT must be a folder"):
        check_out(scans, scans / "a.nii.gz")
    check_out(scans, tmp_path / "scans-out")
    check_out(scans / "a.nii.gz", scans)  # one file, its mask beside it


def table(path, *lines):
    path.write_text("\n".join(["case_id,path,series,chosen,center", *lines]) + "\n", encoding="utf-8")
    return path


def test_an_edited_table_is_obeyed(tmp_path):
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz", "scans/c.nrrd")
    lines = ("mine/one,scans/a.nii.gz,,yes,Bern", ",scans/b.nii.gz,,no,", ",scans/c.nrrd,,x,Ulm")
    cases = cases_in(table(tmp_path / "cases.csv", *lines), channels=["ct"])
    assert [(case.case_id, case.skipped, dict(case.extra)) for case in cases] == [
        ("b", "not chosen in the table", {"center": ""}),
        ("c", "", {"center": "Ulm"}),
        ("mine/one", "", {"center": "Bern"}),
    ]
    assert cases[2].sources[0].path == tmp_path / "scans/a.nii.gz"


def test_ids_of_a_table_stay_below_out(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "c.nii.gz")
    made = ids_of(table(tmp_path / "t.csv", "../../x,a.nii.gz,,yes,", "/etc/y,b.nii.gz,,yes,", "C:\\z,c.nii.gz,,yes,"))
    assert all(not PurePosixPath(id).is_absolute() and ".." not in PurePosixPath(id).parts for id in made)
    assert not any(PureWindowsPath(id).drive for id in made)


def test_rows_of_one_id_are_the_channels_of_a_case(tmp_path):
    touch(tmp_path, "p.nii.gz", "q.nii.gz")
    rows = table(tmp_path / "t.csv", "x,q.nii.gz,,yes,", "x,p.nii.gz,,yes,")
    (case,) = cases_in(rows, channels=["portal", "arterial"])
    assert [source.path.name for source in case.sources] == ["q.nii.gz", "p.nii.gz"]
    assert len(ids_of(rows)) == len(set(ids_of(rows))) == 2  # for a model of one channel they are two cases


def test_a_table_without_a_chosen_row_is_told(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv: no row is chosen"):
        ids_of(table(tmp_path / "t.csv", "x,q.nii.gz,,no,"))


@pytest.fixture(scope="session")
def series(shared_data):
    return shared_data / "dicom_small" / "torchio" / "dicom"


UID = "1.2.826.0.1.3680043.2.1125.1.34342067217438436433087125579339530"


def test_a_series_is_called_by_a_pseudonym_wherever_it_lies(tmp_path, series):
    first, second = tmp_path / "one", tmp_path / "two" / "CANARY" / "study"
    first.mkdir()
    second.parent.mkdir(parents=True)
    (first / "CANARY").symlink_to(series)
    second.symlink_to(series)
    ids = [ids_of(root, all_series=True) for root in (first, tmp_path / "two")]
    assert ids[0] == ids[1]
    (case,) = cases_in(first, channels=["ct"], key=KEY, all_series=True)
    assert case.keyed
    assert len(case.sources[0].files) == 17
    inner, outer = (bytes(byte ^ pad for byte in KEY.ljust(64, b"\0")) for pad in (0x36, 0x5C))  # RFC 2104
    mac = hashlib.sha256(outer + hashlib.sha256(inner + UID.encode()).digest())
    assert case.case_id == f"case-{mac.hexdigest()[:10]}"


def test_a_series_may_be_called_by_its_folder_and_uid(tmp_path, series):
    (tmp_path / "study").symlink_to(series)
    assert ids_of(tmp_path, all_series=True, ids="original") == [f"study/{UID}"]


def test_a_series_that_is_not_chosen_is_skipped_with_the_reason(tmp_path, series):
    (tmp_path / "study").symlink_to(series)
    (case,) = cases_in(tmp_path, channels=["ct"], key=KEY)
    assert case.skipped == "17 slices, fewer than 20"


def test_a_series_in_a_zip_is_a_case(tmp_path, series):
    with zipfile.ZipFile(tmp_path / "CANARY.zip", "w") as archive:
        for path in sorted(series.iterdir()):
            archive.write(path, f"CANARY/{path.name}")
    for scans in (tmp_path, tmp_path / "CANARY.zip"):
        (case,) = cases_in(scans, channels=["ct"], key=KEY, all_series=True)
        assert case.sources[0].path == tmp_path / "CANARY.zip"
        assert "CANARY" not in case.case_id
    assert ids_of(tmp_path, all_series=True, ids="original") == [f"CANARY/{UID}"]


def test_a_broken_series_fails_and_one_slice_is_not_taken_for_it(tmp_path, series):
    folder = tmp_path / "study"
    folder.mkdir()
    for path in sorted(series.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    slices = sorted(folder.iterdir())
    with pytest.raises(DataError, match="one file of a DICOM series; give the folder that holds all of it"):
        ids_of(slices[0])
    slices[8].unlink()
    (case,) = cases_in(tmp_path, channels=["ct"], key=KEY, all_series=True)
    assert case.problem
    assert not case.skipped
    assert case.sources[0].series_uid == UID


def test_many_files_of_other_kinds_are_no_series(tmp_path):
    touch(tmp_path, "a.nii.gz", "b", "c.unknown", "notes.txt")
    assert ids_of(tmp_path) == ["a"]
    assert list_cases(tmp_path, channels=["ct"]).passed_over == 3


def test_a_damaged_zip_that_is_given_alone_is_named(tmp_path):
    (tmp_path / "export.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"^export\.zip: the zip is not whole; copy it again$"):
        cases_in(tmp_path / "export.zip", channels=["ct"])


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_to_a_scan_that_is_gone_is_one_case_and_no_fault_of_the_series_beside_it(tmp_path):
    write_series(tmp_path / "scans" / "ct", some_voxels((6, 5, 24)), grid(spacing=(1, 1, 2)))
    (tmp_path / "scans" / "ct" / "gone.nii.gz").symlink_to(tmp_path / "archive" / "gone.nii.gz")
    found = cases_in(tmp_path / "scans", channels=["ct"])
    assert [(case.problem, case.skipped) for case in found] == [("", ""), ("", "")]
    assert sum(case.sources[0].is_dicom for case in found) == 1
