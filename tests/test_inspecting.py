"""The table of series: from headers alone, read back as a person edited it, and harmless in a spreadsheet."""

import csv
import io
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from dicom_files import CANARY, CANARY_DATE, grid, report, save, some_voxels, write_series
from typer.testing import CliRunner

from medseg.cli import app
from medseg.errors import ConfigError, DataError
from medseg.inspecting import COLUMNS, read_table, table, write_table
from medseg.reading import read_source

PLAIN = "path,series,chosen\n"


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    long = some_voxels((6, 5, 24))
    write_series(folder / "study" / "thin", long, grid(spacing=(1, 1, 2)), ConvolutionKernel="STANDARD")
    write_series(
        folder / "study" / "bone", long, grid(spacing=(1, 1, 1)), SeriesInstanceUID="1.2.3.5", ConvolutionKernel="BONE"
    )
    save(report(), folder / "study" / "dose.dcm")
    (folder / "sub").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 9), np.int16), grid(spacing=(1, 1, 4))), folder / "sub" / "liver.nii.gz")
    (folder / "sub" / "broken.nii").write_bytes(b"no scan")
    return folder


def written(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_and_series_is_a_row_with_its_reason(scans, tmp_path):
    write_table(table(scans), tmp_path / "cases.csv")
    rows = {row["path"]: row for row in written(tmp_path / "cases.csv")}
    assert tuple(next(iter(rows.values()))) == COLUMNS
    said = {path: (row["case_id"], row["slices"], row["thickness_mm"], row["chosen"]) for path, row in rows.items()}
    assert said == {
        "scans/study/thin": ("", "24", "2", "yes"),
        "scans/study/bone": ("", "24", "1", "no"),
        "scans/study": ("", "", "", "no"),
        "scans/sub/liver.nii.gz": ("sub/liver", "9", "4", "yes"),
        "scans/sub/broken.nii": ("sub/broken", "", "", "no"),
    }
    assert rows["scans/study/thin"]["series"] == "1.2.3.4"
    assert rows["scans/study/bone"]["reason"] == "sharp kernel BONE; its study has one of a soft kernel"
    assert rows["scans/study"]["reason"] == "is a report (such as a dose report), no volume"
    assert rows["scans/sub/broken.nii"]["reason"].startswith("broken.nii: ")


def test_what_is_written_reads_back_with_files_and_scans(scans, tmp_path):
    rows = table(scans)
    write_table(rows, tmp_path / "cases.csv")
    back = read_table(tmp_path / "cases.csv")
    assert [(row.case_id, row.chosen, row.kernel, row.reason) for row in back] == [
        (row.case_id, row.chosen, row.kernel, row.reason) for row in rows
    ]
    chosen = [row for row in back if row.chosen]
    assert [len(row.source.files) for row in chosen] == [24, 0]
    for row, original in zip(chosen, [row for row in rows if row.chosen], strict=True):
        np.testing.assert_array_equal(read_source(row.source).voxels, read_source(original.source).voxels)
    assert all(row.extra == {} for row in back)


def test_the_table_may_move_with_its_scans(scans, tmp_path):
    write_table(table(scans), tmp_path / "cases.csv")
    (tmp_path / "elsewhere").mkdir()
    scans.rename(tmp_path / "elsewhere" / "scans")
    (tmp_path / "cases.csv").rename(tmp_path / "elsewhere" / "cases.csv")
    assert [len(row.source.files) for row in read_table(tmp_path / "elsewhere" / "cases.csv") if row.chosen] == [24, 0]


def test_no_name_or_date_of_a_patient_is_written(scans, tmp_path):
    write_table(table(scans), tmp_path / "cases.csv")
    text = (tmp_path / "cases.csv").read_text(encoding="utf-8")
    assert CANARY not in text
    assert CANARY_DATE not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)"])
def test_a_cell_that_a_spreadsheet_would_run_is_defused_and_restored(tmp_path, text):
    folder = tmp_path / text.replace("/", "")
    write_series(folder, some_voxels((6, 5, 24)), SeriesDescription=text)
    write_table(table(folder), tmp_path / "cases.csv")
    (row,) = written(tmp_path / "cases.csv")
    assert row["description"] == f"'{text}"
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row.values())
    (back,) = read_table(tmp_path / "cases.csv")
    assert (back.description, len(back.source.files)) == (text, 24)


def spreadsheet(rows, separator, encoding):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows(rows)
    return text.getvalue().encode(encoding)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path, separator, encoding):
    rows = [
        ["Chosen ", "Bemerkung", "path"],
        ["JA", "große, Läsion; links", "a.nii"],
        ["", "", ""],
        ["nein", "", "b.nii"],
    ]
    (tmp_path / "cases.csv").write_bytes(spreadsheet(rows, separator, encoding))
    yes, no = read_table(tmp_path / "cases.csv")
    assert (yes.chosen, yes.source.path, yes.extra) == (True, tmp_path / "a.nii", {"bemerkung": "große, Läsion; links"})
    assert (no.chosen, no.extra) == (False, {"bemerkung": ""})


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [("yes", True), ("Yes", True), ("ja", True), ("1", True), ("x", True), ("TRUE", True), ("WAHR", True),
     ("no", False), ("nein", False), ("0", False), ("", False), ("FALSCH", False)],
)  # fmt: skip
def test_yes_and_no_may_be_said_in_many_ways(tmp_path, answer, chosen):
    (tmp_path / "cases.csv").write_text(f"{PLAIN}a.nii,,{answer}\n")
    assert read_table(tmp_path / "cases.csv")[0].chosen is chosen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cases.csv: no column path and chosen in its first line; start from `medseg inspect SCANS -o cases.csv`"),
        ("path,kernel\na,b\n", "cases.csv: no column chosen in its first line"),
        (PLAIN + "a.nii,,maybe\n", "cases.csv, line 2: chosen is 'maybe'; write yes or no"),
        (PLAIN + "\n\n,,yes\n", "cases.csv, line 4: no path; write one, or remove the line"),
        (PLAIN + "a.nii,,yes,\n", "cases.csv, line 2: 4 cells where the first line has 3; quote commas in it"),
        (PLAIN + "a.nii,,yes\nb.nii,,no\na.nii,,1\n", "line 4: the same file or series as in line 2; choose it once"),
        ("path,chosen,note,note\n", "cases.csv: the column 'note' is there twice; remove one"),
        (PLAIN + 'a.nii,,"yes\n', "cases.csv: not a table of cells"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_obeyed_is_refused_with_the_line(tmp_path, text, said):
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_table(tmp_path / "cases.csv")
    assert said in str(caught.value)


def test_no_table_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"cases.csv: cannot be read \(No such file or directory\); check the path"):
        read_table(tmp_path / "cases.csv")


def test_a_chosen_series_that_is_gone_stays_a_row_whose_reading_says_so(scans, tmp_path):
    (tmp_path / "cases.csv").write_text(f"{PLAIN}scans/study/thin,9.9,yes\nscans/none,1.2,yes\n")
    for row in read_table(tmp_path / "cases.csv"):
        assert row.source.files == ()
        with pytest.raises(DataError, match="DICOM series: "):
            read_source(row.source)


def test_a_chosen_report_is_refused_as_what_it_is(scans, tmp_path):
    (tmp_path / "cases.csv").write_text(f"{PLAIN}scans/study,1.2.3.88,yes\n")
    (row,) = read_table(tmp_path / "cases.csv")
    with pytest.raises(DataError, match=r"^DICOM series: is a report \(such as a dose report\), no volume"):
        read_source(row.source)


def test_one_file_and_a_folder_of_nothing(scans, tmp_path):
    (row,) = table(scans / "sub" / "liver.nii.gz")
    assert (row.case_id, row.slices) == ("liver", 9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no scan file \(.*\) and no DICOM series in it; check the path"):
        table(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: no such folder or file"):
        table(tmp_path / "nowhere")


def test_the_command_writes_the_table_and_keeps_an_edited_one(scans, tmp_path):
    out = tmp_path / "cases.csv"
    result = CliRunner().invoke(app, ["inspect", str(scans), "-o", str(out)])
    assert result.exit_code == 0
    assert result.output == f"5 scans and series, 2 chosen: see {out}\n"
    edited = out.read_bytes() + b"\n"
    out.write_bytes(edited)
    again = CliRunner().invoke(app, ["inspect", str(scans), "-o", str(out)])
    assert isinstance(again.exception, ConfigError)
    assert "may have been edited; choose another name, or add --overwrite" in str(again.exception)
    assert out.read_bytes() == edited
    everything = CliRunner().invoke(app, ["inspect", str(scans), "-o", str(out), "--all-series", "--overwrite"])
    assert "5 scans and series, 3 chosen" in everything.output


@pytest.mark.parametrize(("out", "said"), [("cases.xlsx", "ends in .csv"), ("none/cases.csv", "no such folder")])
def test_the_command_refuses_an_odd_place_for_the_table(scans, tmp_path, out, said):
    result = CliRunner().invoke(app, ["inspect", str(scans), "-o", str(tmp_path / out)])
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)


def test_no_model_torch_or_dicom_library_is_loaded_before_it_is_needed(scans, tmp_path):
    code = (
        "import sys; import medseg.reading; assert 'medseg.reading.dicom' not in sys.modules\n"
        "from pathlib import Path; from medseg.inspecting import table\n"
        f"assert len(table(Path({str(scans)!r}))) == 5\n"
        "assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_table_that_cannot_be_written_is_one_line(scans, tmp_path):
    (tmp_path / "cases.csv").mkdir()
    done = CliRunner().invoke(app, ["inspect", str(scans), "-o", str(tmp_path / "cases.csv"), "--overwrite"])
    assert isinstance(done.exception, ConfigError)
    expected = r"cases\.csv cannot be written \(.+\); close it, or choose another place"
    assert re.fullmatch(expected, str(done.exception))
