"""Viewers: found or refused with what to install, started with the right files; a stand-in program records its call."""

import csv
import json
import sys
import time

import pytest
from dicom_files import write_series
from typer.testing import CliRunner

from medseg.cli import app
from medseg.errors import ConfigError
from medseg.formats import Structures, write_label_tables
from medseg.reading.dicom import find_series
from medseg.viewers import find_program, mask_of, scan_of

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # a viewer outlives the command

STRUCTURES = Structures({"background": 0, "liver": 1, "tumor": 2}, {"liver": [1, 2], "tumor": [2]}, "m", "1")


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out with spaces"
    (folder / "ward").mkdir(parents=True)
    for name in ("ward/scan_seg.nii.gz", "case-0123456789_seg.nii.gz"):
        (folder / name).write_bytes(b"mask")
    write_label_tables(folder, STRUCTURES)
    return folder


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A program that writes its arguments to a file."""
    script, called = tmp_path / "viewer.py", tmp_path / "called.json"
    script.write_text(
        f"#!{sys.executable}\nimport json, sys, os\n"
        f"open({str(called)!r} + '.part', 'w').write(json.dumps(sys.argv[1:]))\n"
        f"os.replace({str(called)!r} + '.part', {str(called)!r})\n"
    )
    script.chmod(0o755)
    for variable in ("MEDSEG_SLICER", "MEDSEG_ITKSNAP"):
        monkeypatch.setenv(variable, str(script))

    def arguments():
        for _ in range(200):
            if called.exists():
                return json.loads(called.read_text())
            time.sleep(0.05)
        raise AssertionError("the viewer was not started")

    return arguments


def run(*arguments):
    return CliRunner().invoke(app, ["open", *map(str, arguments)], catch_exceptions=False)


def test_itksnap_gets_scan_mask_and_names(out, stand_in, tmp_path):
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"scan")
    assert run(out, "ward/scan", "--with", "itksnap", "--scan", scan).exit_code == 0
    mask, labels = out / "ward" / "scan_seg.nii.gz", out / "labels_itksnap.txt"
    assert stand_in() == ["-g", str(scan), "-s", str(mask), "-l", str(labels)]


def test_slicer_gets_a_program_that_names_each_file(out, stand_in, tmp_path):
    scan = tmp_path / "it's a scan.nii.gz"
    scan.write_bytes(b"scan")
    assert run(out, "ward/scan", "--scan", scan).exit_code == 0
    flag, code = stand_in()
    assert flag == "--python-code"
    compile(code, "slicer", "exec")
    for path in (scan, out / "ward" / "scan_seg.nii.gz", out / "labels.ctbl"):
        assert repr(str(path)) in code


def test_a_pseudonyms_scan_is_found_by_the_key_table(out, tmp_path):
    paths = write_series(tmp_path / "dicom")
    (series,) = find_series(tmp_path / "dicom")
    with (out / "key.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("case_id", "path", "series_uid"),
                ("case-0123456789", str(tmp_path / "dicom"), series.source.series_uid),
                ("case-gone", str(tmp_path / "nowhere"), "1.2"),
            ]
        )
    assert scan_of(out, "case-0123456789") in paths
    with pytest.raises(ConfigError, match="the series is gone"):
        scan_of(out, "case-gone")
    with pytest.raises(ConfigError, match="add --scan FILE"):
        scan_of(out, "ward/scan")


def test_a_case_that_is_not_there_names_those_that_are(out, tmp_path):
    with pytest.raises(ConfigError, match="no mask of case 'b' in this OUT; it has case-0123456789, ward/scan"):
        mask_of(out, "b")
    with pytest.raises(ConfigError, match="it has none"):
        mask_of(tmp_path / "empty", "b")


def test_an_absent_viewer_says_what_to_install(monkeypatch):
    monkeypatch.delenv("MEDSEG_SLICER", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ConfigError, match=r"3D Slicer was not found \(it is not on the PATH\): install it from slicer.org"
    ):
        find_program("slicer")
    monkeypatch.setenv("MEDSEG_ITKSNAP", "/nowhere/itksnap")
    with pytest.raises(ConfigError, match="MEDSEG_ITKSNAP names no program"):
        find_program("itksnap")


def test_unknown_viewers_and_absent_scans_are_refused(out, tmp_path):
    with pytest.raises(ConfigError, match="'paint' is not known; give slicer or itksnap"):
        run(out, "ward/scan", "--with", "paint")
    with pytest.raises(ConfigError, match="--scan: no such file"):
        run(out, "ward/scan", "--scan", tmp_path / "none.nii.gz")
