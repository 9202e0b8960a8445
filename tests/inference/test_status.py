import json
import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from medseg.cli import app
from medseg.errors import ConfigError
from medseg.inference.cases import Case
from medseg.inference.ledger import Ledger
from medseg.inference.run_file import end_run, write_run
from medseg.inference.settings import RunSettings
from medseg.inference.status import status_of
from medseg.reading import ScanSource

SETTINGS = RunSettings("liver", "1.0", "a" * 64, "b" * 64, "float32")


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def cases(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    found = []
    for number in range(5):
        (scans / f"{number}").write_bytes(b"scan")
        found.append(Case(f"s{number}", (ScanSource(scans / f"{number}"),)))
    return [*found, Case("s5", (), skipped="a localizer"), Case("s6", (), problem="cannot be listed")]


def begin(out, cases):
    ledger = Ledger.open(out, SETTINGS)
    ledger.start(len(cases))
    write_run(out, SETTINGS, command=["predict", "scans", "out"], cases=cases, to_do=5, device="cpu")
    return ledger


def do(ledger, case, status="done"):
    assert ledger.claim(case)
    mask = ledger.out / f"{case.case_id}_seg.nii.gz"
    if status == "done":
        mask.write_bytes(b"mask")
    row = {"case_id": case.case_id, "status": status}
    ledger.record(case, row, [], mask=mask if status == "done" else None)
    return mask


def told(out, *options):
    result = CliRunner().invoke(app, ["status", str(out), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_tells_how_far_it_is(out, cases):
    with begin(out, cases) as ledger:
        assert status_of(out).seconds_left is None
        mask = do(ledger, cases[0])
        do(ledger, cases[1])
        do(ledger, cases[2], "failed")
        assert ledger.claim(cases[3])
        mask.write_bytes(b"edited")
        time.sleep(0.3)
        found = status_of(out)
        assert found.model == "liver 1.0"
        assert found.counts == {"done": 1, "edited": 1, "failed": 2, "skipped": 1, "pending": 2}
        assert found.current == ["s3"]
        assert [work.process["pid"] for work in found.running] == [os.getpid()]
        spent = time.time() - found.running[0].since
        assert found.seconds_left == pytest.approx(spent / 3 * 2, rel=0.5)  # three cases in that time, two to go
        text = told(out)
        assert "1 done, 1 edited, 2 failed, 1 skipped, 2 pending" in text
        assert "in work: s3" in text
        assert f"running: process {os.getpid()}; time left: about 0:00:0" in text
        assert json.loads(told(out, "--json"))["current"] == ["s3"]


def test_asking_writes_nothing(out, cases):
    with begin(out, cases) as ledger:
        do(ledger, cases[0])
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        status_of(out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_run_that_ended_says_so(out, cases):
    with begin(out, cases) as ledger:
        for case in cases[:5]:
            do(ledger, case)
    end_run(out, {"done": 5})
    found = status_of(out)
    assert (found.counts["done"], found.counts["pending"], found.running, found.stopped) == (5, 0, [], "")
    assert "running: no\n" in told(out)


def test_a_run_that_stopped_early_says_why_and_what_to_do(out, cases):
    with begin(out, cases) as ledger:
        do(ledger, cases[0])
    end_run(out, {"done": 1}, stopped="the disk is full")
    assert status_of(out).stopped == "the disk is full"
    text = told(out)
    assert "1 done, 1 failed, 1 skipped, 4 pending" in text
    assert "running: no (the disk is full); the same command of `medseg predict` does the pending cases" in text


DIES = """
import os, sys
from pathlib import Path
from medseg.inference.cases import Case
from medseg.inference.ledger import Ledger
from medseg.inference.run_file import write_run
from medseg.inference.settings import RunSettings
out = Path(sys.argv[1])
settings = RunSettings("liver", "1.0", "a" * 64, "b" * 64, "float32")
cases = [Case("s0", ()), Case("s1", ())]
ledger = Ledger.open(out, settings)
ledger.start(2)
write_run(out, settings, command=[], cases=cases, to_do=2, device="cpu")
ledger.claim(cases[0])
os.kill(os.getpid(), 9)
"""


def test_a_killed_run_is_known_to_be_dead(out):
    assert subprocess.run([sys.executable, "-c", DIES, str(out)], check=False).returncode == -9
    found = status_of(out)
    assert (found.running, found.current) == ([], [])
    assert found.counts["pending"] == 2
    assert found.stopped == "its process is gone without a word"


def test_a_mask_that_was_removed_is_pending(out, cases):
    with begin(out, cases) as ledger:
        for case in cases[:5]:
            do(ledger, case)
    end_run(out, {"done": 5})
    (out / "s0_seg.nii.gz").unlink()
    assert status_of(out).counts == {"done": 4, "edited": 0, "failed": 1, "skipped": 1, "pending": 1}


def test_a_folder_that_no_run_has_written_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run of `medseg predict` has written there; give its OUT"):
        status_of(tmp_path)


def test_a_ledger_without_a_run_file_still_tells_its_cases(out, cases):
    with Ledger.open(out, SETTINGS) as ledger:
        do(ledger, cases[0])
    assert status_of(out).counts["done"] == 1
    assert "model:   unknown" in told(out)
