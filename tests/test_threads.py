"""Waiting threads: torch's share the machine with other programs."""

import os
import subprocess
import sys

import pytest

from medseg.threads import SPIN_COUNT, wait_briefly

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which none of the names is set, and whose changes are undone."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone, too
        monkeypatch.delenv(name)
    return monkeypatch


def told() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_threads_are_told_to_wait_briefly(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(sys, "platform", "linux")
    wait_briefly()
    assert told() == {"GOMP_SPINCOUNT": SPIN_COUNT, "OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "1"}


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "PASSIVE")])
def test_what_the_user_has_set_stays(bare: pytest.MonkeyPatch, name: str, value: str) -> None:
    bare.setattr(sys, "platform", "linux")
    bare.setenv(name, value)
    wait_briefly()
    assert told() == {name: value}


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_openmp_is_left_alone(bare: pytest.MonkeyPatch, platform: str) -> None:
    bare.setattr(sys, "platform", platform)
    wait_briefly()
    assert told() == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP is Linux's")
def test_openmp_takes_the_number_when_it_is_set_before_torch(bare: pytest.MonkeyPatch) -> None:
    script = "from medseg.threads import wait_briefly; wait_briefly(); import torch"
    bare.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr
