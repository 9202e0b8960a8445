"""`medseg predict` as a user meets it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series
from small_bundle import make_bundle, write_scan

from medseg import cli
from medseg.writing import write_nifti

NOTICE = "not a medical device; trained on synthetic data, not for patients\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder / "net")
    return folder / "net"


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    for number, name in enumerate(("a", "b")):
        write_scan(folder / f"{name}.nii.gz", seed=number)
    return folder


@pytest.fixture
def predict(monkeypatch, tmp_path, model):
    """Exit code of `medseg predict ARGUMENTS --model MODEL`, in this process."""
    monkeypatch.setenv("MEDSEG_IN_PROCESS", "1")

    def run(*arguments, model=model, out=tmp_path / "out"):
        given = ["--model", str(model)] if model else []
        monkeypatch.setattr(sys, "argv", ["medseg", "predict", *map(str, [*arguments, out]), *given, "--device", "cpu"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    return run


def break_scan(scans, name="a"):
    file = scans / f"{name}.nii.gz"
    file.write_bytes(file.read_bytes()[:200])


def test_every_scan_is_predicted_and_the_notice_shown(predict, scans, tmp_path, capsys):
    assert predict(scans) == 0
    captured = capsys.readouterr()
    assert captured.out == f"2 done, 0 failed, 0 with warnings: see {tmp_path / 'out' / 'report.csv'}\n{NOTICE}"
    assert captured.err == ""
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a_seg.nii.gz", "b_seg.nii.gz"]


def test_failed_scan_is_a_line_and_another_exit_code(predict, scans, capsys):
    break_scan(scans)
    assert predict(scans) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("a: a.nii.gz: damaged or cut short")
    assert captured.err.count("\n") == 1
    assert captured.out.startswith("1 done, 1 failed, 0 with warnings: ")


def test_failed_scans_are_done_again_only_if_asked(predict, scans, capsys):
    whole = (scans / "a.nii.gz").read_bytes()
    break_scan(scans)
    assert predict(scans) == 3
    assert predict(scans) == 3
    captured = capsys.readouterr()
    assert captured.err.count("damaged") == 1
    assert captured.out.splitlines()[2].endswith("(1 failed before: --retry-failed does them again)")
    assert predict(scans, "--retry-failed") == 3
    assert capsys.readouterr().err.count("damaged") == 1
    (scans / "a.nii.gz").write_bytes(whole)
    assert predict(scans) == 0


def test_strict_stops_at_the_first_failure(predict, scans, capsys):
    break_scan(scans)
    assert predict(scans, "--strict") == 4
    captured = capsys.readouterr()
    assert captured.err.splitlines()[1] == "stopped: at the first failure, as --strict asks"
    assert captured.out.startswith("0 done, 1 failed, 0 with warnings, 1 pending: ")


def test_bar_is_drawn_on_a_terminal_alone_and_failures_above_it(predict, scans, monkeypatch, capsys):
    (scans / "b.nii.gz").rename(scans / "[bold].nii.gz")
    break_scan(scans, "[bold]")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert predict(scans) == 3
    error = capsys.readouterr().err
    assert "[bold]: [bold].nii.gz: damaged" in error
    assert "2/2" in error


def test_json_has_a_line_an_event(predict, scans, capsys):
    break_scan(scans)
    assert predict(scans, "--json") == 3
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert [event["event"] for event in events] == ["start", "case", "case", "end"]
    assert (events[0]["cases"], events[0]["to_do"], events[0]["precision"]) == (2, 2, "float32")
    assert [event["status"] for event in events[1:3]] == ["failed", "done"]
    assert events[2]["seconds_left"] == 0
    assert (events[3]["done"], events[3]["failed"], events[3]["exit_code"]) == (1, 1, 3)
    assert captured.err == ""


def test_dry_run_tells_and_writes_nothing(predict, scans, tmp_path, capsys):
    (scans / "b.nii.gz").write_bytes(b"no scan")
    assert predict(scans, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a: 0.0 million voxels, ")
    assert lines[1].startswith("b: will fail: b.nii.gz: ")
    assert lines[2].startswith("2 of 2 cases to do; memory beside the network: ")
    assert lines[2].endswith("time: known once a case is done")
    assert not (tmp_path / "out").exists()


def test_dry_run_tells_the_room_of_probabilities(predict, tmp_path, capsys):
    write_scan(tmp_path / "scans" / "a.nii.gz", shape=(80, 80, 82))  # half a million voxels
    told = []
    for options in ((), ("--probabilities",)):
        assert predict(tmp_path / "scans", "--dry-run", "--json", *options) == 0
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1])["disk_mb"])
    assert told == [2, 8]  # mask and records; and three classes of four bytes at each voxel


def test_dry_run_knows_what_is_done(predict, scans, tmp_path, capsys):
    assert predict(scans, "--limit", 1) == 0
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert predict(scans, "--dry-run", "--json") == 0
    forecast = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(forecast["cases"]) == ["b"]
    assert forecast["seconds"] > 0
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


def test_limit_leaves_the_rest_pending(predict, scans, capsys):
    assert predict(scans, "--limit", 1) == 0
    assert capsys.readouterr().out.startswith("1 done, 0 failed, 0 with warnings, 1 pending: ")
    assert predict(scans, "--limit", 1) == 0
    assert capsys.readouterr().out.startswith("2 done, 0 failed, 0 with warnings: ")


def test_other_settings_need_redo_or_another_out(predict, scans, tmp_path, capsys):
    assert predict(scans) == 0
    assert predict(scans, "--precision", "bfloat16") == 2
    assert "precision float32, now bfloat16" in capsys.readouterr().err
    assert predict(scans, "--precision", "bfloat16", "--redo") == 0
    with (tmp_path / "out" / "report.csv").open(encoding="utf-8", newline="") as file:
        assert [row["precision"] for row in csv.DictReader(file)] == ["bfloat16", "bfloat16"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--ids", "names", "--ids is 'names'; use default, original, pseudonym"),
        ("--precision", "float8", "--precision is 'float8'; use float32, bfloat16, float16"),
    ],
)
def test_unknown_words_are_refused(predict, scans, capsys, option, value, message):
    assert predict(scans, option, value) == 2
    assert capsys.readouterr().err == f"medseg: {message}\n"


def test_unknown_device_is_refused_once(scans, tmp_path, model, monkeypatch, capsys):
    monkeypatch.setenv("MEDSEG_IN_PROCESS", "1")
    arguments = ["predict", str(scans), str(tmp_path / "out"), "--model", str(model), "--device", "gpu"]
    monkeypatch.setattr(sys, "argv", ["medseg", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "medseg: device 'gpu' is unknown; use auto, cpu, cuda or cuda:N\n"


@pytest.mark.parametrize("in_process", ["0", "1"])
def test_memory_of_a_gpu_is_refused_where_there_is_none(predict, scans, capsys, monkeypatch, in_process):
    monkeypatch.setenv("MEDSEG_IN_PROCESS", in_process)
    assert predict(scans, "--gpu-memory", "4") == 2
    assert capsys.readouterr().err == (
        "medseg: --gpu-memory: the network runs on the CPU here; leave it out (medseg doctor tells of GPUs)\n"
    )


@pytest.mark.parametrize("out", [".", "masks"])
def test_masks_are_not_written_among_the_scans(predict, scans, capsys, out):
    assert predict(scans, out=scans / out) == 2
    assert capsys.readouterr().err.endswith("masks would be taken for scans; choose another OUT\n")
    assert sorted(path.name for path in scans.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_masks_of_one_scan_may_lie_beside_it(predict, scans):
    assert predict(scans / "a.nii.gz", out=scans) == 0
    assert (scans / "a_seg.nii.gz").is_file()


def test_out_that_is_a_file_is_refused(predict, scans, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert predict(scans) == 2
    assert capsys.readouterr().err == f"medseg: {tmp_path / 'out'} is a file; OUT must be a folder\n"


def test_missing_scans_are_one_line(predict, tmp_path, capsys):
    assert predict(tmp_path / "absent") == 2
    assert capsys.readouterr().err == "medseg: scans 'absent': no such file or folder; check the path\n"
    assert not list((tmp_path / "out").rglob("*_seg*"))


def test_missing_model_is_one_line(predict, scans, tmp_path, capsys):
    assert predict(scans, model=tmp_path / "absent") == 2
    error = capsys.readouterr().err
    assert error.startswith("medseg: no model ")
    assert error.count("\n") == 1


def test_without_a_model_those_that_are_here_are_listed(predict, scans, model, monkeypatch, capsys):
    monkeypatch.setenv("MEDSEG_MODELS", str(model.parent))
    assert predict(scans, model=None) == 2
    assert f"--model {model} (test net" in capsys.readouterr().err


def test_scan_unlike_the_training_scans_gets_a_flag(predict, scans, tmp_path, capsys):
    wide = {"low": [0.7, 0.7, 1.0], "high": [0.9, 0.9, 5.0]}
    known = {"spacing_mm": wide, "field_of_view_mm": {"low": [1] * 3, "high": [999] * 3}, "percentiles": {}}
    make_bundle(tmp_path / "narrow", training_range=known)
    assert predict(scans, model=tmp_path / "narrow") == 0
    assert capsys.readouterr().out.startswith("2 done, 0 failed, 0 with warnings, 2 to look at: ")
    with (tmp_path / "out" / "report.csv").open(encoding="utf-8", newline="") as file:
        flags = next(csv.DictReader(file))["flags"]
    assert "unlike the training scans: spacing along right 1.5 mm, trained on 0.7 to 0.9 mm" in flags
    assert "along head" not in flags


def test_prediction_loads_no_torch_in_the_parent_and_never_monai(scans, tmp_path, model):
    """Cases are done in another process; a re-run with nothing to do starts none."""
    program = (
        "import sys; sys.argv = ['medseg', 'predict', *sys.argv[1:]]\n"
        "from medseg.cli import main\n"
        "if __name__ == '__main__':\n"
        "    try: main()\n"
        "    except SystemExit as end: print('exit', end.code)\n"
        "    print(sorted({'monai', 'mlflow', 'matplotlib', 'ignite', 'torch'} & set(sys.modules)))\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, tmp_path / "program.py", scans, tmp_path / "out", "--model", model, "--device", "cpu"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-2:] == ["exit 0", "[]"]
        assert done.stderr == ""


def test_prediction_in_this_process_loads_neither_monai_nor_mlflow_nor_matplotlib(scans, tmp_path, model):
    program = (
        "import os, sys; sys.argv = ['medseg', 'predict', *sys.argv[1:]]; os.environ['MEDSEG_IN_PROCESS'] = '1'\n"
        "from medseg.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print('exit', end.code)\n"
        "print(sorted({'monai', 'mlflow', 'matplotlib', 'ignite', 'torch'} & set(sys.modules)))\n"
    )
    arguments = [str(scans), str(tmp_path / "out"), "--model", str(model), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["exit 0", "['torch']"]


def test_folder_of_scans_without_a_model_fails_for_real(scans, tmp_path):
    command = [sys.executable, "-m", "medseg.cli", "predict", scans, tmp_path / "out", "--model", "absent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("medseg: ")
    assert done.stderr.count("\n") == 1


def test_a_ct_that_is_no_ct_fails(predict, scans, capsys):
    write_nifti(np.full((21, 18, 13), 7, np.int16), np.diag([1.0, 1, 1, 1]), Path(scans) / "a.nii.gz")
    assert predict(scans) == 3
    assert "a.nii.gz: every voxel is 7" in capsys.readouterr().err


def test_a_folder_of_which_nothing_is_done_says_why(predict, tmp_path, capsys):
    voxels = np.random.default_rng(0).integers(-1000, 400, (9, 8, 7)).astype(np.int16)
    write_series(tmp_path / "short" / "series", voxels, np.diag([3.0, 3, 3, 1]))
    assert predict(tmp_path / "short") == 0
    assert "1 skipped: 7 slices, fewer than 20" in capsys.readouterr().err


def test_dry_run_leaves_a_folder_that_is_there_as_it_is(predict, scans, tmp_path):
    (tmp_path / "out").mkdir()
    assert predict(scans, "--dry-run") == 0
    assert list((tmp_path / "out").iterdir()) == []
