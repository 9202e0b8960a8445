"""Waiting threads: torch's share the machine with other programs."""

import os
import subprocess
import sys

import pytest

from medseg.threads import SPIN_COUNT, wait_briefly


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_threads_are_told_to_wait_briefly(bare: pytest.MonkeyPatch) -> None:
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        bare.delenv(name)


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_what_the_user_has_set_stays(bare: pytest.MonkeyPatch, name: str, value: str) -> None:
    bare.setenv(name, value)
    wait_briefly()
    assert os.environ[name] == value
    assert os.environ.get("GOMP_SPINCOUNT", "7") == "7"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP is Linux's")
def test_openmp_takes_the_number_when_it_is_set_before_torch(bare: pytest.MonkeyPatch) -> None:
    script = "from medseg.threads import wait_briefly; wait_briefly(); import torch"
    bare.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr
