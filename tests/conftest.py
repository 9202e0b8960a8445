"""Fixtures of the whole suite."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests are small, and run beside each other

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_store():
    """No test takes the store of the one before: `mlflow.set_tracking_uri` leaves it in the environment."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a folder a folder of runs, with an empty store: MLflow takes seconds for one, so it is made once."""
    from medseg.tracking import check_store

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    made = tmp_path_factory.mktemp("store")
    check_store(made)

    def copy(runs_dir: Path) -> Path:
        runs_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made / "mlflow.db", runs_dir / "mlflow.db")
        return runs_dir

    return copy


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans: MEDSEG_SHARED_DATA, else shared/data beside the checkout."""
    given = os.environ.get("MEDSEG_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real scans here: set MEDSEG_SHARED_DATA to their folder")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if not sys.platform.startswith("linux") or mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here: needs Linux and root")
    yield folder
    subprocess.run(["umount", folder], check=True)
