import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.errors import ConfigError
from medseg.inference import claims as claims_module
from medseg.inference.cases import Case
from medseg.inference.claims import MISSED_S, Claims
from medseg.inference.ledger import Ledger
from medseg.inference.out_files import create_once, sweep
from medseg.inference.records import Records, record_name
from medseg.inference.settings import RunSettings
from medseg.liveness import this_process
from medseg.reading import ScanSource

SETTINGS = RunSettings("liver", "1.0", "a" * 64, "b" * 64, "float32")
LARGE = 100_000  # bytes: more than both ends that are hashed


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "scans" / "deep" / "a.nii.gz", "deep/a")


def make_case(path, case_id):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(range(256)) * (LARGE // 256))
    return Case(case_id, (ScanSource(path),))


def file_digest(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def do(ledger, case, *, status="done", content=b"mask"):
    """What a batch does with a case."""
    with ledger:
        return claim_and_record(ledger, case, status, content)


def claim_and_record(ledger, case, status="done", content=b"mask"):
    assert ledger.claim(case)
    row = {"case_id": case.case_id, "status": status, "message": "", "liver_ml": 12.5}
    if status == "failed":
        ledger.record(case, row, [])
        return None
    mask = ledger.out / f"{case.case_id}_seg.nii.gz"
    mask.parent.mkdir(parents=True, exist_ok=True)
    mask.write_bytes(content)
    lesions = [{"case_id": case.case_id, "lesion": 1, "volume_ml": 0.5}]
    ledger.record(case, row, lesions, inputs_sha256=[file_digest(case.sources[0].path)], mask=mask)
    return mask


def reopened(out, **options):
    return Ledger.open(out, SETTINGS, **options)


def test_a_case_that_is_done_is_not_done_again(out, case):
    ledger = reopened(out)
    assert ledger.decide(case).action == "do"
    do(ledger, case)
    for again in (ledger, reopened(out)):
        decision = again.decide(case)
        assert decision.action == "done"
        assert decision.row["liver_ml"] == 12.5
        assert [row["case_id"] for row in again.rows()] == ["deep/a"]
        assert again.lesions() == [{"case_id": "deep/a", "lesion": 1, "volume_ml": 0.5}]


@pytest.mark.parametrize("place", [0, LARGE - 300])
def test_a_scan_whose_ends_changed_is_done_again_though_size_and_time_are_the_same(out, case, place):
    do(reopened(out), case)
    path = case.sources[0].path
    about, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert reopened(out).decide(case).action == "do"


def test_a_change_in_the_middle_is_seen_by_the_time_or_by_verify(out, case):
    do(reopened(out), case)
    path = case.sources[0].path
    about, content = path.stat(), bytearray(path.read_bytes())
    content[LARGE // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert reopened(out).decide(case).action == "done"
    assert reopened(out).decide(case, verify=True).action == "do"
    os.utime(path)
    assert reopened(out).decide(case).action == "do"


def test_a_scan_that_was_only_copied_or_touched_is_not_done_again(out, case):
    do(reopened(out), case)
    os.utime(case.sources[0].path, ns=(1, 1))
    assert reopened(out).decide(case).action == "done"
    inputs = json.loads(next((out / ".medseg" / "cases").iterdir()).read_text())["inputs"]
    os.utime(case.sources[0].path, ns=(1, 1))
    assert reopened(out).decide(case, verify=True).action == "done"
    assert json.loads(next((out / ".medseg" / "cases").iterdir()).read_text())["inputs"] == inputs


def test_a_scan_that_is_away_for_now_leaves_what_was_done_alone(out, case):
    do(reopened(out), case)
    case.sources[0].path.rename(case.sources[0].path.with_name("away"))
    assert reopened(out).decide(case).action == "done"
    assert reopened(out).decide(case, verify=True).action == "do"


def test_a_change_while_the_scan_was_being_segmented_is_seen_later(out, case):
    ledger = reopened(out)
    assert ledger.claim(case)
    mask = out / "deep" / "a_seg.nii.gz"
    mask.parent.mkdir()
    mask.write_bytes(b"mask")
    case.sources[0].path.write_bytes(b"another scan")
    ledger.record(case, {"case_id": case.case_id, "status": "done"}, [], inputs_sha256=["0" * 64], mask=mask)
    assert reopened(out).decide(case).action == "do"


def test_a_lost_mask_is_made_again(out, case):
    do(reopened(out), case).unlink()
    decision = reopened(out).decide(case)
    assert (decision.action, decision.reason) == ("do", "its mask is gone")


def test_a_failure_is_tried_again_only_when_asked_or_when_the_scan_is_another(out, case):
    do(reopened(out), case, status="failed")
    assert reopened(out).decide(case).action == "failed"
    assert reopened(out).decide(case).row["status"] == "failed"
    assert reopened(out).decide(case, verify=True).action == "failed"
    assert reopened(out).decide(case, retry_failed=True).action == "do"
    case.sources[0].path.write_bytes(b"exported again")
    assert reopened(out).decide(case).action == "do"


def test_a_missing_scan_that_came_back_is_tried_again(out, case):
    path = case.sources[0].path
    content = path.read_bytes()
    path.unlink()
    do(reopened(out), case, status="failed")
    assert reopened(out).decide(case).action == "failed"
    path.write_bytes(content)
    assert reopened(out).decide(case).action == "do"


@pytest.mark.parametrize("options", [{}, {"retry_failed": True}, {"verify": True}])
def test_a_mask_that_a_person_edited_is_never_done_again(out, case, options):
    ledger = reopened(out)
    mask = do(ledger, case)
    mask.write_bytes(b"m2sk")  # of the same size
    case.sources[0].path.write_bytes(b"another scan")
    for again in (ledger, reopened(out), reopened(out, redo=True)):
        decision = again.decide(case, **options)
        assert decision.action == "edited"
        assert decision.row["status"] == "edited"
        assert "remove it" in decision.row["message"]
        assert "liver_ml" not in decision.row  # that was measured on another mask
        assert again.rows() == [decision.row]
        assert again.lesions() == []
    other = RunSettings("liver", "2.0", "c" * 64, "b" * 64, "float32")
    assert Ledger.open(out, other, redo=True).decide(case).action == "edited"


def test_an_edit_that_keeps_size_and_time_is_seen_by_verify(out, case):
    mask = do(reopened(out), case)
    about = mask.stat()
    mask.write_bytes(b"m2sk")
    os.utime(mask, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert reopened(out).decide(case, verify=True).action == "edited"


def test_a_mask_that_was_copied_is_not_edited(out, case):
    mask = do(reopened(out), case)
    os.utime(mask, ns=(1, 1))
    assert reopened(out).decide(case).action == "done"


def test_a_mask_of_unknown_origin_is_kept(out, case):
    mask = out / "deep" / "a_seg.nii.gz"
    mask.parent.mkdir()
    mask.write_bytes(b"drawn by hand")
    decision = reopened(out).decide(case)
    assert (decision.action, decision.row["status"]) == ("edited", "edited")
    assert reopened(out).rows() == []
    mask.unlink()
    assert reopened(out).decide(case).action == "do"


def test_a_mask_drawn_by_hand_for_a_case_that_failed_is_kept(out, case):
    do(reopened(out), case, status="failed")
    (out / "deep").mkdir()
    (out / "deep" / "a_seg.nii.gz").write_bytes(b"drawn by hand")
    assert reopened(out).decide(case, retry_failed=True).action == "edited"


def test_no_mask_of_an_earlier_scan_stands_beside_a_failure(out, case):
    mask = do(reopened(out), case)
    case.sources[0].path.write_bytes(b"broken now")
    ledger = reopened(out)
    assert ledger.decide(case).action == "do"
    do(ledger, case, status="failed")
    assert not mask.exists()


def test_a_failure_leaves_an_edited_mask_alone(out, case):
    mask = do(reopened(out), case)
    ledger = reopened(out)
    case.sources[0].path.write_bytes(b"broken now")
    assert ledger.decide(case).action == "do"
    mask.write_bytes(b"edited while it was being done")
    do(ledger, case, status="failed")
    assert mask.read_bytes() == b"edited while it was being done"


@pytest.mark.parametrize("edited", [False, True])
def test_what_shows_a_mask_goes_and_stays_with_it(out, case, edited):
    mask = do(reopened(out), case)
    page = out / "cases" / "page.html"
    page.parent.mkdir()
    page.touch()
    ledger = reopened(out)
    with ledger:
        assert ledger.claim(case)
        if edited:
            mask.write_bytes(b"edited while it was being done")
        row = {"case_id": case.case_id, "status": "failed", "message": ""}
        ledger.record(case, row, [], further=[page, out / "none.stl"])
    assert (mask.exists(), page.exists()) == (edited, edited)


def test_other_settings_need_redo_or_another_folder(out, case):
    do(reopened(out), case)
    other = RunSettings("liver", "1.0", "c" * 64, "b" * 64, "bfloat16", mirroring=True)
    said = "made with other settings: weights a{12}, now c{12}; precision float32, now bfloat16; mirroring off, now on"
    with pytest.raises(ConfigError, match=f"{said}; choose another OUT, .*--redo"):
        Ledger.open(out, other)
    ledger = Ledger.open(out, other, redo=True)
    assert ledger.decide(case).action == "do"
    do(ledger, case, content=b"new mask")
    assert Ledger.open(out, other).decide(case).action == "done"
    with pytest.raises(ConfigError, match="precision bfloat16, now float32"):
        reopened(out)


def test_redo_waits_for_a_process_with_other_settings(out):
    other = RunSettings("liver", "2.0", "a" * 64, "b" * 64, "float32")
    with reopened(out) as working:
        working.start(3)
        with pytest.raises(ConfigError, match=f"is being written with other settings by process {os.getpid()}"):
            Ledger.open(out, other, redo=True)
    Ledger.open(out, other, redo=True)


def test_settings_that_cannot_be_read_are_no_settings(out):
    reopened(out)
    (out / ".medseg" / "settings.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot be read .* choose another OUT"):
        reopened(out)


def test_of_two_processes_one_gets_the_case(out, case):
    first, second = reopened(out), reopened(out)
    assert first.decide(case).action == second.decide(case).action == "do"
    assert first.claim(case)
    assert first.claim(case)  # it has it
    assert not second.claim(case)
    assert second.decide(case).action == "busy"
    first.release(case)
    assert second.claim(case)


def test_a_case_that_another_process_finished_since_is_not_claimed(out, case):
    first, second = reopened(out), reopened(out)
    assert second.decide(case).action == "do"
    do(first, case)
    assert not second.claim(case)
    assert second.decide(case).action == "done"
    assert [row["case_id"] for row in second.rows()] == ["deep/a"]
    assert not list((out / ".medseg" / "claims").iterdir())


def test_closing_gives_everything_back(out, case):
    with reopened(out) as first:
        assert first.claim(case)
    with reopened(out) as second:
        assert second.claim(case)
    assert not list((out / ".medseg" / "claims").iterdir())
    assert not list((out / ".medseg" / "processes").iterdir())


DIES = """
import os, sys
from pathlib import Path
from medseg.inference.cases import Case
from medseg.inference.ledger import Ledger
from medseg.inference.settings import RunSettings
from medseg.reading import ScanSource
out, scan, mask = (Path(path) for path in sys.argv[1:])
ledger = Ledger.open(out, RunSettings("liver", "1.0", "a" * 64, "b" * 64, "float32"))
ledger.start(1)
assert ledger.claim(Case("deep/a", (ScanSource(scan),)))
if mask.name != "none":
    mask.parent.mkdir(exist_ok=True)
    mask.write_bytes(b"whole, but not recorded")
os.kill(os.getpid(), 9)
"""


def die(out, case, mask="none"):
    command = [sys.executable, "-c", DIES, str(out), str(case.sources[0].path), str(mask)]
    assert subprocess.run(command, check=False).returncode == -9


def test_a_dead_process_loses_its_case_to_one_other(out, case):
    die(out, case)
    first, second = reopened(out), reopened(out)
    assert first.decide(case).action == "do"
    assert first.claim(case)
    assert not second.claim(case)
    second.close()
    claim_and_record(first, case)
    assert not list((out / ".medseg" / "claims").iterdir())
    reopened(out)
    assert [path.stem for path in (out / ".medseg" / "processes").iterdir()] == [first._claims.token]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_mask_whose_process_died_before_it_was_recorded_is_made_again(out, case, recorded):
    if recorded:
        do(reopened(out), case)
        case.sources[0].path.write_bytes(b"another scan")
    mask = out / "deep" / "a_seg.nii.gz"
    die(out, case, mask)
    assert mask.read_bytes() == b"whole, but not recorded"
    ledger = reopened(out)
    assert ledger.decide(case).action == "do"
    do(ledger, case)
    assert reopened(out).decide(case).action == "done"


def test_an_edit_long_after_a_process_died_is_an_edit(out, case):
    mask = out / "deep" / "a_seg.nii.gz"
    die(out, case, mask)
    later = time.time() + 3600
    os.utime(mask, (later, later))
    assert reopened(out).decide(case).action == "edited"


def refuse(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("done_before", [False, True])
def test_a_mask_whose_record_the_disk_refused_is_made_again(out, case, monkeypatch, done_before):
    if done_before:
        do(reopened(out), case)
        case.sources[0].path.write_bytes(b"another scan")
    with monkeypatch.context() as full, reopened(out) as ledger:
        full.setattr(Records, "write", refuse)
        with pytest.raises(OSError, match="No space left"):
            claim_and_record(ledger, case, content=b"another mask")
    assert not (out / "deep" / "a_seg.nii.gz").exists()
    assert reopened(out).decide(case).action == "do"


def test_a_mask_that_an_interrupted_run_wrote_and_did_not_record_is_made_again(out, case):
    mask = out / "deep" / "a_seg.nii.gz"
    mask.parent.mkdir()
    with reopened(out) as ledger:
        assert ledger.claim(case)
        mask.write_bytes(b"written while Ctrl-C was pressed")
    assert not mask.exists()
    assert reopened(out).decide(case).action == "do"


def test_an_interrupted_run_keeps_what_is_recorded(out, case):
    mask = do(reopened(out), case)
    with reopened(out, redo=True) as ledger:
        assert ledger.claim(case)
    assert mask.read_bytes() == b"mask"
    assert reopened(out).decide(case).action == "done"


@pytest.mark.parametrize("by", ["this process", "a dead one"])
def test_a_mask_that_was_written_before_its_case_failed_goes(out, case, by):
    mask = out / "deep" / "a_seg.nii.gz"
    if by == "a dead one":
        die(out, case, mask)
    with reopened(out) as ledger:
        assert ledger.decide(case).action == "do"
        assert ledger.claim(case)
        if by == "this process":
            mask.parent.mkdir()
            mask.write_bytes(b"whole, but its lesions could not be measured")
        ledger.record(case, {"case_id": case.case_id, "status": "failed"}, [])
    assert not mask.exists()
    assert reopened(out).decide(case).action == "failed"
    assert reopened(out).decide(case, retry_failed=True).action == "do"


def elsewhere(out, name, *, silent_s):
    """A claim of a process of another machine, whose last sign of life is `silent_s` old."""
    other = Claims(out / ".medseg")
    process = this_process() | {"host": "another machine"}
    create_once(other._own_file(), json.dumps({"process": process, "since": 0.0, "total": 1}))
    create_once(other._file(name, 0), json.dumps({"token": other.token}))
    at = time.time() - silent_s
    os.utime(other._own_file(), (at, at))


def test_a_process_of_another_machine_keeps_its_case_while_it_gives_signs(out, case):
    name = record_name(case.case_id)
    elsewhere(out, name, silent_s=MISSED_S / 2)
    ledger = reopened(out)
    assert ledger.decide(case).action == "busy"
    assert not ledger.claim(case)


def test_a_process_of_another_machine_that_went_silent_loses_it(out, case):
    elsewhere(out, record_name(case.case_id), silent_s=MISSED_S * 2)
    ledger = reopened(out)
    assert ledger.decide(case).action == "do"
    assert ledger.claim(case)


def test_a_number_that_another_process_has_now_is_no_sign_of_life(out, case):
    name = record_name(case.case_id)
    other = Claims(out / ".medseg")
    for started, living in ((this_process()["started"], True), (1000.0, False)):  # before the machine was restarted
        sign = {"process": this_process() | {"started": started}, "since": 0.0, "total": 1}
        other._own_file().parent.mkdir(parents=True, exist_ok=True)
        other._own_file().write_text(json.dumps(sign))
        create_once(other._file(name, 0), json.dumps({"token": other.token}))
        assert reopened(out).claim(case) is not living


def test_a_claim_that_is_being_written_counts_as_living(out, case):
    file = Claims(out / ".medseg")._file(record_name(case.case_id), 0)
    file.parent.mkdir(parents=True)
    file.touch()
    assert not reopened(out).claim(case)
    os.utime(file, (1, 1))
    assert reopened(out).claim(case)


def test_the_sign_of_life_is_renewed(out, monkeypatch):
    monkeypatch.setattr(claims_module, "BEAT_S", 0.05)
    with reopened(out) as ledger:
        ledger.start(1)
        sign = ledger._claims._own_file()
        os.utime(sign, (1, 1))
        until = time.monotonic() + 10
        while sign.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.02)
        assert time.time() - sign.stat().st_mtime < 10
        sign.unlink()  # OUT was cleaned up under its feet
        while not sign.exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert json.loads(sign.read_text())["total"] == 1


WORKS = """
import random, sys, time
from pathlib import Path
from medseg.inference.cases import Case
from medseg.inference.ledger import Ledger
from medseg.inference.settings import RunSettings
from medseg.reading import ScanSource
out, scans, log = (Path(path) for path in sys.argv[1:])
cases = [Case(path.stem, (ScanSource(path),)) for path in sorted(scans.iterdir())]
random.shuffle(cases)
with Ledger.open(out, RunSettings("liver", "1.0", "a" * 64, "b" * 64, "float32")) as ledger:
    ledger.start(len(cases))
    for case in cases:
        if ledger.decide(case).action == "do" and ledger.claim(case):
            with log.open("a") as file:
                file.write(f"begin {case.case_id}\\n")
            time.sleep(0.005)
            mask = out / f"{case.case_id}_seg.nii.gz"
            mask.write_bytes(b"mask")
            with log.open("a") as file:
                file.write(f"end {case.case_id}\\n")
            ledger.record(case, {"case_id": case.case_id, "status": "done"}, [], inputs_sha256=["0"], mask=mask)
"""


def test_three_processes_on_one_folder_do_each_case_once(out, tmp_path):
    scans, log = tmp_path / "scans", tmp_path / "log"
    scans.mkdir()
    for number in range(60):
        (scans / f"{number:03d}").write_bytes(b"scan")
    command = [sys.executable, "-c", WORKS, str(out), str(scans), str(log)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    begun = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("begin")]
    assert sorted(begun) == [f"{number:03d}" for number in range(60)]
    assert len(reopened(out).rows()) == 60


def test_half_written_files_of_dead_processes_are_removed(out):
    (out / "deep").mkdir()
    left = [out / ".01234567-report.csv", out / "deep" / ".89abcdef-a_seg.nii.gz", out / ".01234567-a_liver.stl"]
    kept = [out / ".notes", out / "deep" / ".89abcdef-a.doc", out / "a_seg.nii.gz", out / ".fedcba98-b_seg.nii.gz"]
    for path in left + kept:
        path.write_bytes(b"x")
    for path in left + kept[:-1]:
        os.utime(path, (1, 1))
    assert sweep(out, older_than_s=60) == 3
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_nothing_is_swept_while_another_process_works(out):
    left = out / ".01234567-a_seg.nii.gz"
    left.write_bytes(b"x")
    os.utime(left, (1, 1))
    with reopened(out) as working:
        left.write_bytes(b"x")
        os.utime(left, (1, 1))
        working.start(1)
        reopened(out)
        assert left.exists()
    reopened(out)
    assert not left.exists()


def test_added_columns_of_a_table_are_those_of_now(out, case):
    do(reopened(out), case)
    ledger = reopened(out)
    assert ledger.decide(Case(case.case_id, case.sources, {"center": "B"})).row["center"] == "B"
    assert ledger.rows()[0]["center"] == "B"


def test_numbers_of_numpy_are_kept_as_numbers(out, case):
    import numpy as np

    ledger = reopened(out)
    ledger.claim(case)
    row = {"case_id": case.case_id, "status": "failed", "liver_ml": np.float32(1.5), "lesion_count": np.int64(2)}
    ledger.record(case, row, [])
    assert reopened(out).rows()[0]["liver_ml"] == 1.5
    assert reopened(out).rows()[0]["lesion_count"] == 2


def test_a_rerun_over_3000_finished_cases_is_a_matter_of_seconds_and_loads_no_torch(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    for folder in (scans, out / ".medseg" / "cases"):
        folder.mkdir(parents=True)
    model = do(Ledger.open(tmp_path / "one", SETTINGS), make_case(scans / "s.nii.gz", "s"))
    record = json.loads(next((tmp_path / "one" / ".medseg" / "cases").iterdir()).read_text())
    for number in range(3000):
        case_id = f"s{number}"
        os.link(scans / "s.nii.gz", scans / f"{case_id}.nii.gz")
        os.link(model, out / f"{case_id}_seg.nii.gz")
        own = record | {"case_id": case_id, "mask": record["mask"] | {"name": f"{case_id}_seg.nii.gz"}}
        own["row"] = record["row"] | {"case_id": case_id}
        (out / ".medseg" / "cases" / f"{record_name(case_id)}.json").write_text(json.dumps(own))
    (scans / "s.nii.gz").unlink()
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from medseg.inference.cases import cases_in\n"
        "from medseg.inference.ledger import Ledger\n"
        "from medseg.inference.settings import RunSettings\n"
        "cases = cases_in(Path(sys.argv[1]), channels=['ct'])\n"
        "ledger = Ledger.open(Path(sys.argv[2]), RunSettings('liver', '1.0', 'a' * 64, 'b' * 64, 'float32'))\n"
        "done = [ledger.decide(case).action for case in cases]\n"
        "assert done == ['done'] * 3000 and len(ledger.rows()) == 3000\n"
        "assert 'torch' not in sys.modules\n"
        "print(time.process_time())\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(scans), str(out)], capture_output=True, text=True, check=True
    )
    assert float(finished.stdout) < 20  # of the 60 that it may take


def test_the_modules_that_decide_load_no_torch():
    names = "cases, claims, identity, ledger, run_file, settings, status"
    imports = f"import sys; from medseg.inference import {names}; from medseg import models"
    program = f"{imports}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_only_the_owner_reads_what_says_who_did_what(out):
    with reopened(out) as ledger:
        ledger.start(1)
        files = [path for path in (Path(out) / ".medseg").rglob("*") if path.is_file()]
        assert len(files) == 2
        assert {path.stat().st_mode & 0o077 for path in files} == {0}
