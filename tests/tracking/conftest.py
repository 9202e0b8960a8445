"""Stores: making one takes seconds, so it is made once and copied."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a folder a folder of runs, with an empty store."""
    pytest.importorskip("mlflow")
    from medseg.tracking import check_store

    made = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        check_store(made)

    def copy(runs_dir: Path) -> Path:
        runs_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made / "mlflow.db", runs_dir / "mlflow.db")
        return runs_dir

    return copy
