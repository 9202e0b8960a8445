"""Cases in a process of their own, for real: killed, crashed, hanging, out of memory, interrupted."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_bundle import make_bundle, write_scan

from medseg.inference.batch import FolderRun, Options
from medseg.inference.cases import cases_in
from medseg.inference.worker import check_disk


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, four scans and the state of the hooks."""
    make_bundle(tmp_path / "bundle")
    for number, name in enumerate("abcd"):
        write_scan(tmp_path / "scans" / f"{name}.nii.gz", seed=number)
    (tmp_path / "state").mkdir()
    monkeypatch.setenv("MEDSEG_TEST_STATE", str(tmp_path / "state"))
    return tmp_path


def run(folder: Path, out: str = "out", **options):
    """Outcome of a run over the folder, and the rows in the order of their telling."""
    from medseg.bundle import open_bundle

    bundle = open_bundle(folder / "bundle")
    settings = Options(**{"isolate": True, "root": folder / "scans", **options})
    cases = cases_in(folder / "scans", channels=["ct"])
    told = []
    outcome = FolderRun(cases, folder / out, bundle, options=settings).do(told.append)
    assert not multiprocessing.active_children()
    return outcome, told


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_seg.nii.gz")}


def test_masks_of_the_process_are_those_made_here(folder):
    outcome, told = run(folder)
    assert [row["status"] for row in outcome.rows] == ["done"] * 4
    assert sorted(row["case_id"] for row in told) == list("abcd")  # two at a time: one may overtake the other
    run(folder, "here", isolate=False)
    assert masks(folder / "out") == masks(folder / "here")
    assert len(masks(folder / "out")) == 4
    again, told = run(folder)
    assert (told, again.rows) == ([], outcome.rows)


def test_a_case_that_kills_its_process_fails_alone(folder):
    outcome, _ = run(folder, hook="faulty:killed_at_b")
    assert {row["case_id"]: row["status"] for row in outcome.rows} == {
        "a": "done",
        "b": "failed",
        "c": "done",
        "d": "done",
    }
    assert "ended by SIGKILL" in outcome.rows[1]["message"]
    assert sorted(masks(folder / "out")) == [f"{name}_seg.nii.gz" for name in "acd"]


@pytest.mark.slow
def test_after_one_segmentation_fault_all_cases_are_done(folder):
    outcome, _ = run(folder, hook="faulty:segfault_once_at_b")
    assert [row["status"] for row in outcome.rows] == ["done"] * 4
    assert (folder / "state" / "segfault").exists()


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_replaced(folder):
    outcome, _ = run(folder, hook="faulty:hangs_once_at_b", patience_s=6.0)
    assert [row["status"] for row in outcome.rows] == ["done"] * 4
    assert (folder / "state" / "hang").exists()


@pytest.mark.slow
def test_a_sticky_device_fault_costs_one_process(folder):
    outcome, _ = run(folder, hook="faulty:sticky_device_fault")
    assert [row["status"] for row in outcome.rows] == ["done"] * 4
    assert len(list((folder / "state").glob("fault-*"))) == 1


@pytest.mark.slow
def test_the_process_ends_with_its_parent(folder):
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from test_worker import run\n"
        "if __name__ == '__main__': run(Path(sys.argv[1]), hook='faulty:slow_from_the_third')\n"
    )
    (folder / "program.py").write_text(program, encoding="utf-8")
    here = Path(__file__).parent
    arguments = [sys.executable, str(folder / "program.py"), str(folder), str(here), str(here.parent)]
    process = subprocess.Popen(arguments)
    try:
        wait_for(lambda: len(masks(folder / "out")) == 2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_ends_within_five_seconds_and_keeps_what_is_finished(folder, number):
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from test_worker import run\n"
        "if __name__ == '__main__':\n"
        "    outcome, _ = run(Path(sys.argv[1]), hook='faulty:slow_from_the_third')\n"
        "    print(outcome.signal, *[row['status'] for row in outcome.rows])\n"
    )
    (folder / "program.py").write_text(program, encoding="utf-8")
    here = Path(__file__).parent
    arguments = [sys.executable, str(folder / "program.py"), str(folder), str(here), str(here.parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        wait_for(lambda: len(masks(folder / "out")) == 2)
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # processes that share a core
        started = time.monotonic()
        os.killpg(process.pid, number)  # as a terminal does: the worker gets it too
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert time.monotonic() - started < 5 * busy
    assert (out.split(), errors) == ([str(int(number)), "done", "done", "pending", "pending"], "")
    assert sorted(masks(folder / "out")) == ["a_seg.nii.gz", "b_seg.nii.gz"]
    assert (folder / "out" / "report.csv").read_text().count("done") == 2


def test_too_little_room_is_said_before_the_mask_is_made(tmp_path):
    check_disk(tmp_path, 0.001)
    with pytest.raises(OSError, match=r"no room for another mask: \d+ MB needed, \d+\.\d MB free|MB needed") as caught:
        check_disk(tmp_path, 1e12)
    assert caught.value.errno == 28


def wait_for(condition, longest_s: float = 300.0) -> None:
    end = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_the_memory_of_a_gpu_reaches_the_predictor(folder, monkeypatch):
    from medseg.bundle import open_bundle
    from medseg.inference import device, predictor
    from medseg.inference.messages import Setup
    from medseg.inference.worker import make_stages

    given = {}

    def from_bundle(bundle, **settings):
        given.update(settings)

    monkeypatch.setattr(device, "choose_device", lambda name: "cuda")
    monkeypatch.setattr(predictor.Predictor, "from_bundle", from_bundle)
    make_stages(Setup(open_bundle(folder / "bundle"), folder / "out", device="auto", gpu_memory_gb=6.0))
    assert given["tuning"].gpu_memory_gb == 6.0
    assert given["device"] == "cuda"
