import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medseg.cli import app
from medseg.data import make_phantom

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small cases, two of them held out."""
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", cases=8, shape=(48, 40, 24), seed=5)


@pytest.fixture(scope="session")
def tiny_overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overlay of seconds."""
    overlay = tmp_path_factory.mktemp("overlay") / "tiny.json"
    overlay.write_text(
        json.dumps(
            {
                "spacing_mm": [8.0, 8.0, 12.0],
                "patch_size": [24, 24, 16],
                "network_def::widths": [4, 8],
                "max_epochs": 2,
                "val_interval": 1,
                "warmup_steps": 2,
                "num_workers": 0,
            }
        )
    )
    return overlay


@pytest.fixture
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes run from the repository root."""
    monkeypatch.chdir(CHECKOUT)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`medseg predict` in this process: for tests that look at masks, not at processes, which take seconds to start."""

    def predict(scans: Path, out: Path, model: Path, *options: str) -> None:
        monkeypatch.setenv("MEDSEG_IN_PROCESS", "1")
        command = ["predict", str(scans), str(out), "--model", str(model), "--device", "cpu", *options]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output

    return predict


@pytest.fixture
def bundle_run(
    in_checkout: None, tiny_overlay: Path, tmp_path: Path, new_store: Callable[[Path], Path]
) -> Callable[..., Path]:
    """Run a run id of the liver recipe in this process; the newest run folder."""
    from monai.bundle import run

    def start(run_id: str, *overlays: str, **overrides: Any) -> Path:
        files = ["configs/unet_liver.json", *overlays, str(tiny_overlay)]
        runs = overrides.setdefault("output_dir", str(tmp_path / "runs"))
        if not (Path(runs) / "mlflow.db").exists():
            new_store(Path(runs))
        run(run_id, config_file=files, logging_file=False, **overrides)
        return max(path.parent for path in Path(runs).glob("*/run.json"))

    return start
