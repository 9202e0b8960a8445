"""What a run may touch: no network, nothing outside OUT; and no patient's name but in `key.csv`."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import CANARY, CANARY_DATE, grid, some_voxels, write_series
from small_bundle import make_bundle

GUARD = '''
"""Notes every attempt to reach a network, in this process and in its children."""
import os, socket

def noted(address):
    with open(os.environ["GUARD"], "a") as file:
        file.write(f"{address}\\n")
    raise OSError("no network in this test")

class Socket(socket.socket):
    def connect(self, address):
        if self.family != getattr(socket, "AF_UNIX", None):
            noted(address)
        return super().connect(address)
    connect_ex = connect

socket.socket = Socket
socket.getaddrinfo = lambda *address, **_: noted(address)
'''


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory):
    """A run over DICOM and NIfTI that name a patient everywhere; its folder, and what it said."""
    folder = tmp_path_factory.mktemp("privacy")
    scans = folder / "scans" / CANARY / CANARY_DATE
    write_series(scans / "ct", some_voxels((20, 18, 24)), grid(spacing=(1.0, 1.0, 3.0)), SeriesDescription=CANARY)
    write_series(scans / "broken", some_voxels((20, 18, 24), seed=1), grid(), SeriesInstanceUID="1.2.3.5")
    next((scans / "broken").glob("*")).write_bytes(b"DICM")
    image = nib.Nifti1Image(some_voxels((20, 18, 24)), np.eye(4))
    image.header["descrip"] = CANARY.encode()
    nib.save(image, folder / "scans" / "plain.nii.gz")
    (folder / "scans" / "cut.nii.gz").write_bytes((folder / "scans" / "plain.nii.gz").read_bytes()[:500])
    make_bundle(folder / "bundle")
    for name in ("home", "here", "tmp", "site"):
        (folder / name).mkdir()
    (folder / "site" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    checkout = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(checkout)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GUARD": str(folder / "network.txt"),
    }
    before = listed(folder)
    command = [sys.executable, "-m", "medseg.cli", "predict", folder / "scans", folder / "out"]
    command += ["--model", folder / "bundle", "--device", "cpu", "--all-series"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder / "here", env=environment)
    assert done.returncode == 3, done.stderr
    return folder, done, before


def listed(folder: Path) -> set[tuple[str, int]]:
    """Every file below a folder but OUT, with the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file() and "out" not in path.relative_to(folder).parts)
    return {(str(path), path.stat().st_mtime_ns) for path in files}


def test_the_run_did_what_it_should(ran):
    folder, done, _ = ran
    assert "done, " in done.stdout
    assert len(list((folder / "out").rglob("*_seg.nii.gz"))) >= 2
    assert CANARY in (folder / "out" / "key.csv").read_text(encoding="utf-8")


def test_no_network_is_reached_for(ran):
    folder, _, _ = ran
    assert not (folder / "network.txt").exists()


def test_the_guard_would_have_seen_it(ran):
    folder, _, _ = ran
    program = "import socket; socket.socket(socket.AF_INET).connect(('127.0.0.1', 9))"
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "GUARD": str(folder / "seen.txt")}
    subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert (folder / "seen.txt").read_text() == "('127.0.0.1', 9)\n"
    (folder / "seen.txt").unlink()


def test_nothing_is_written_outside_out(ran):
    folder, _, before = ran
    assert listed(folder) == before


def test_the_name_is_nowhere_but_in_the_key(ran):
    folder, done, _ = ran
    for word in (CANARY, CANARY_DATE):
        assert word not in done.stdout + done.stderr
        for path in (folder / "out").rglob("*"):
            assert word not in str(path.relative_to(folder))
            if path.is_file() and path.name != "key.csv":
                content = path.read_bytes()
                content += gzip.decompress(content) if path.suffix == ".gz" else b""
                assert word.encode() not in content, path.name


def test_the_key_is_for_its_owner_alone(ran):
    folder, _, _ = ran
    if os.name == "posix":
        assert (folder / "out" / "key.csv").stat().st_mode & 0o077 == 0
