"""Folders whose surroundings fail: share, disk, GPU, memory; whose masks were edited; that two processes do."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_bundle import make_bundle, write_scan

from medseg.bundle import Bundle
from medseg.errors import ConfigError
from medseg.inference.batch import FolderRun, Options
from medseg.inference.cases import cases_in
from medseg.inference.messages import Extras

COUNT = 14


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(COUNT):
        write_scan(tmp_path / "scans" / f"{number:02}.nii.gz", seed=number, shape=(9, 8, 7))
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("MEDSEG_TEST_STATE", str(tmp_path / "state"))
    return tmp_path


def planned(folder: Path, bundle: Bundle, **options) -> FolderRun:
    cases = cases_in(folder / "scans", channels=["ct"])
    return FolderRun(cases, folder / "out", bundle, options=Options(root=folder / "scans", **options))


def statuses(outcome) -> dict[str, int]:
    found = [row["status"] for row in outcome.rows]
    return {status: found.count(status) for status in dict.fromkeys(found)}


def report(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "report.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_share_that_vanishes_leaves_the_rest_pending_and_a_rerun_completes(folder, bundle):
    run = planned(folder, bundle)

    def vanish(row):
        if row["case_id"] == "02":
            (folder / "scans").rename(folder / "away")

    outcome = run.do(vanish)
    assert statuses(outcome) == {"done": 3, "pending": COUNT - 3}
    assert outcome.stop.cause == "share"
    assert "10 cases in a row failed for want of the folder of the scans; reconnect" in outcome.stop.message
    assert [row["status"] for row in report(folder)].count("pending") == COUNT - 3
    (folder / "away").rename(folder / "scans")
    assert statuses(planned(folder, bundle).do()) == {"done": COUNT}


def test_a_full_disk_stops_the_run_and_a_rerun_completes(folder, bundle):
    outcome = planned(folder, bundle, hook="faulty:disk_is_full").do()
    assert statuses(outcome) == {"pending": COUNT}
    assert outcome.stop.cause == "disk"
    assert not list((folder / "out").rglob("*_seg*"))
    assert statuses(planned(folder, bundle).do()) == {"done": COUNT}


def test_a_lost_gpu_stops_the_run_and_a_rerun_completes(folder, bundle):
    outcome = planned(folder, bundle, hook="faulty:device_is_lost").do()
    assert statuses(outcome) == {"pending": COUNT}
    assert outcome.stop.cause == "device"
    assert report(folder)[0]["message"] == "RuntimeError: CUDA error: unspecified launch failure"
    assert statuses(planned(folder, bundle).do()) == {"done": COUNT}


def test_a_full_disk_is_met_without_harm_for_real(folder, bundle):
    """A disk of 3 MB, which something else fills while masks are written."""
    disk = folder / "out"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        run = planned(folder, bundle)

        def fill(row):
            if row["case_id"] == "03":
                (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free))

        outcome = run.do(fill)
        assert outcome.stop.cause == "disk"
        assert "disk space" in outcome.stop.message
        done = [row for row in outcome.rows if row["status"] == "done"]
        assert len(done) == 4
        written = sorted(disk.glob("*_seg.nii.gz"))
        for path in written:
            assert nib.load(path).get_fdata().shape == (9, 8, 7)
        assert len(written) >= 4
        (disk / "other").unlink()
        assert statuses(planned(folder, bundle).do()) == {"done": COUNT}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_command_says_a_full_disk_in_one_line(folder, bundle):
    disk = folder / "out"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        command = [sys.executable, "-m", "medseg.cli", "predict", folder / "scans", disk, "--model", bundle.root]
        environment = os.environ | {"MEDSEG_IN_PROCESS": "1"}
        done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, env=environment)
        assert done.returncode == 4
        assert done.stderr == (
            "stopped: 10 cases in a row failed for want of disk space; free space on OUT's disk, then run the same "
            "command\n"
        )
        assert not list(disk.rglob("*_seg*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_edited_mask_is_kept_and_said(folder, bundle):
    planned(folder, bundle).do()
    mask = folder / "out" / "05_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((9, 8, 7), np.uint8), np.eye(4)), mask)
    edited = mask.read_bytes()
    write_scan(folder / "scans" / "05.nii.gz", seed=99, shape=(9, 8, 7))  # even if its scan has changed
    assert statuses(planned(folder, bundle).do()) == {"done": COUNT - 1, "edited": 1}
    assert mask.read_bytes() == edited
    row = report(folder)[5]
    assert (row["status"], row["liver_ml"]) == ("edited", "")


def test_the_page_of_an_edited_mask_says_that_it_shows_the_one_before(folder, bundle):
    planned(folder, bundle, extras=Extras(pages=True)).do()
    mask = folder / "out" / "05_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((9, 8, 7), np.uint8), np.eye(4)), mask)
    planned(folder, bundle, extras=Extras(pages=True)).do()
    said = {page.stem: "was edited" in page.read_text() for page in (folder / "out" / "cases").glob("*.html")}
    assert [case for case, edited in said.items() if edited] == ["05"]
    assert len(said) == COUNT


def test_a_changed_scan_is_done_again_alone(folder, bundle):
    planned(folder, bundle).do()
    write_scan(folder / "scans" / "05.nii.gz", seed=99, shape=(9, 8, 7))
    run = planned(folder, bundle)
    assert [case.case_id for case in run.todo] == ["05"]
    before = (folder / "out" / "05_seg.nii.gz").read_bytes()
    assert statuses(run.do()) == {"done": COUNT}
    assert (folder / "out" / "05_seg.nii.gz").read_bytes() != before


def test_a_scan_that_breaks_later_leaves_no_mask_beside_its_failed_row(folder, bundle):
    planned(folder, bundle).do()
    (folder / "scans" / "05.nii.gz").write_bytes(b"broken")
    assert statuses(planned(folder, bundle).do()) == {"done": COUNT - 1, "failed": 1}
    assert not (folder / "out" / "05_seg.nii.gz").exists()


def test_two_runs_on_one_folder_do_each_case_once(folder, bundle):
    first, second = planned(folder, bundle), planned(folder, bundle)
    tried = {"first": [], "second": []}

    def halfway(row):
        tried["first"].append(row["case_id"])
        if len(tried["first"]) == 5:
            second.do(lambda row: tried["second"].append(row["case_id"]))

    outcome = first.do(halfway)
    assert sorted(tried["first"] + tried["second"]) == [f"{number:02}" for number in range(COUNT)]
    assert len(tried["second"]) == COUNT - 5
    assert statuses(outcome) == {"done": COUNT}


def test_what_another_process_gives_back_undone_is_done_at_the_end(folder, bundle):
    other = planned(folder, bundle)
    held = other.todo[2:5]
    assert all(other.claim(case) for case in held)
    run = planned(folder, bundle)
    assert len(run.todo) == COUNT - 3

    def interrupt_the_other(row):
        if row["case_id"] == "09":
            for case in held:
                other.ledger.release(case)

    outcome = run.do(interrupt_the_other)
    assert (statuses(outcome), outcome.stop) == ({"done": COUNT}, None)
    assert [row["status"] for row in report(folder)] == ["done"] * COUNT


def test_what_another_process_still_has_at_the_end_is_not_called_all_done(folder, bundle):
    other = planned(folder, bundle)
    assert other.claim(other.todo[2])
    outcome = planned(folder, bundle).do()
    assert statuses(outcome) == {"done": COUNT - 1, "pending": 1}
    assert outcome.stop is not None
    assert "1 case is in the hands of another process" in outcome.stop.message
    assert "medseg status OUT" in outcome.stop.message
    other.ledger.release(other.todo[2])
    assert statuses(planned(folder, bundle).do()) == {"done": COUNT}


def test_further_columns_of_a_table_of_cases_are_in_the_report(folder, bundle):
    table = folder / "cases.csv"
    rows = [["case_id", "path", "chosen", "site"], ["x", "scans/00.nii.gz", "yes", "North"]]
    rows += [["y", "scans/01.nii.gz", "no", "South"]]
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    cases = cases_in(table, channels=["ct"])
    FolderRun(cases, folder / "out", bundle).do()
    assert {(row["case_id"], row["status"], row["site"]) for row in report(folder)} == {
        ("x", "done", "North"),
        ("y", "skipped", "South"),
    }


def test_a_column_of_a_table_never_stands_for_one_of_the_report(folder, bundle):
    table = folder / "cases.csv"
    text = "case_id,path,chosen,status,seconds,liver_ml,extras\nx,scans/00.nii.gz,yes,failed,long,1,none\n"
    table.write_text(text, encoding="utf-8")
    for _ in range(2):  # the second run takes the row from the ledger
        run = FolderRun(cases_in(table, channels=["ct"]), folder / "out", bundle)
        assert statuses(run.do()) == {"done": 1}
        (row,) = report(folder)
        assert (row["status"], row["status (given)"], row["seconds (given)"]) == ("done", "failed", "long")
        assert float(row["seconds"]) >= 0
        assert (row["liver_ml (given)"], row["extras (given)"]) == ("1", "none")
    assert run.todo == []


def test_a_model_that_cannot_be_loaded_is_an_error_of_the_user(folder, tmp_path):
    broken = make_bundle(tmp_path / "broken")
    (broken.root / "models" / "model.pt").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot be read as plain weights"):
        planned(folder, broken).do()


def test_a_report_that_is_held_open_does_not_end_the_run(folder, bundle, monkeypatch, caplog):
    from medseg.inference import tables

    monkeypatch.setattr(tables, "SHORTEST_S", 0.0)
    monkeypatch.setattr(tables, "COST_SHARE", 1e9)
    real, held = tables.write_csv, [True] * 3

    def write_csv(*arguments):
        if held:
            held.pop()
            raise PermissionError("held by a spreadsheet")
        real(*arguments)

    monkeypatch.setattr(tables, "write_csv", write_csv)
    assert statuses(planned(folder, bundle).do()) == {"done": COUNT}
    assert len(report(folder)) == COUNT
    assert "report.csv cannot be written now (PermissionError); close it" in caplog.text


def test_tables_cost_a_small_share_of_a_long_run(folder, bundle, monkeypatch):
    from medseg.inference import tables

    written = []
    monkeypatch.setattr(tables, "write_csv", lambda path, *_: written.append(path.name))
    planned(folder, bundle).do()
    assert written.count("report.csv") <= 3  # not one a case
