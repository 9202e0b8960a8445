"""A run's truthful record: how it ended, and what it says of data and model."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_bundle import RECIPE, make_bundle

from medseg import tracking
from medseg.data import Cases
from medseg.notices import SYNTHETIC
from medseg.tracking.journal import Journal
from workflows import experiment as experiments
from workflows import recipe
from workflows.evaluation import evaluate
from workflows.experiment import Experiment


@pytest.fixture
def runs_dir(tmp_path: Path, new_store: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store; the merged recipe is that of the small model."""
    monkeypatch.setattr(recipe, "merged_recipe", lambda: RECIPE | {"fold": 1, "dataset_dir": None})
    monkeypatch.setattr(recipe, "overrides", dict)
    return new_store(tmp_path / "runs")


def experiment_in(runs_dir: Path, **settings: Any) -> Experiment:
    metadata = runs_dir / "metadata.json"
    metadata.write_text("{}")
    return Experiment(
        output_dir=str(runs_dir),
        experiment_name="liver",
        run_name="small",
        cases=Cases([], [], [], layout="none"),
        metadata=str(metadata),
        **{"dataset_dir": str(runs_dir)} | settings,
    )


def test_a_fold_that_cannot_join_its_cross_validation_has_failed(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tracking.start_run(runs_dir=runs_dir, experiment="liver", name="all")
    parent.finish("FINISHED")

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(experiments, "note_fold", full)
    fold = experiment_in(runs_dir, part_of=str(parent.folder))
    with pytest.raises(OSError, match="No space left"), fold.running():
        pass
    assert Journal(fold.folder).status() == "FAILED"
    assert "No space left" in (fold.folder / "error.txt").read_text()


@pytest.mark.parametrize("model_is", [True, False])
def test_an_evaluation_tells_what_its_data_are_and_what_its_model_has_learned_from(
    runs_dir: Path, tmp_path: Path, model_is: bool
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "dataset.json").write_text(json.dumps({"synthetic": not model_is}))
    bundle = make_bundle(tmp_path / "model", synthetic=model_is)
    experiment = experiment_in(runs_dir, dataset_dir=str(tmp_path / "scans"))
    evaluator: Any = SimpleNamespace(run=lambda: None)
    evaluate(experiment, evaluator, bundle.network(), str(bundle.root))
    assert json.loads((experiment.folder / "data.json").read_text())["synthetic"] is not model_is
    assert experiment.synthetic is not model_is  # as the card tells the source
    assert experiment.notice == (SYNTHETIC if model_is else None)
