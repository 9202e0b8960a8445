"""Fixtures of the whole suite."""

import os
import random
from pathlib import Path

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
def shared_data() -> Path:
    """Folder of real scans: MEDSEG_SHARED_DATA, else shared/data beside the checkout."""
    given = os.environ.get("MEDSEG_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real scans here: set MEDSEG_SHARED_DATA to their folder")
    return folder
