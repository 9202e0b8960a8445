"""One run, from its start to a truthful end: its folder, its bundle, and its page in MLflow."""

import json
import logging
import math
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg import tracking
from medseg.bundle import task_metadata, write_bundle
from medseg.data import Cases, region_volumes
from medseg.errors import ConfigError
from medseg.notices import SYNTHETIC
from medseg.reading import MaskCode
from workflows import distributed, recipe, resuming
from workflows.checkpoints import newest_checkpoint
from workflows.failure import ended_by_signals, failure_line
from workflows.fold_runs import end_with_launcher, note_fold, parent_id
from workflows.training_scans import range_of

logger = logging.getLogger(__name__)

PLACES = (
    "dataset_dir",
    "splits",
    "part_of",
    "scans_dir",
    "model",
    "resume",
    "pretrained_model",
)  # of this machine: a bundle must not name them


class Experiment:
    """The run that trainer, validator and evaluators share.

    Nothing is written until `running` begins. Of several processes the first alone records and writes.

    Args:
        output_dir: folder of all runs; holds the MLflow store.
        experiment_name: groups runs in MLflow.
        run_name: what the run's folder and MLflow page are called.
        cases: the data of the run, for its fingerprint.
        dataset_dir: where they come from; says whether they are synthetic.
        metadata: file with the metadata that the bundle's own starts from.
        part_of: run folder of the cross-validation that this is a fold of.
        masks: what the values of mask files mean, where labels are such.
        register_as: name of the MLflow model that the best model of this run becomes a version of; a fold's does not.
        alias: what that model calls this version, such as "best".

    Attributes:
        results: the latest value of every metric.
        synthetic: whether the data are.
        model_synthetic: whether a model that comes from elsewhere has learned from such; None for one that learns here.

    Raises:
        ConfigError: if an alias is given without a name.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        experiment_name: str,
        run_name: str,
        cases: Cases,
        dataset_dir: str,
        metadata: str = "configs/metadata.json",
        part_of: str | None = None,
        masks: MaskCode | None = None,
        register_as: str | None = None,
        alias: str | None = None,
    ) -> None:
        if alias and not register_as:
            raise ConfigError(f"alias: {alias!r} needs the name of a registered model; set register_as too")
        self.output_dir, self.experiment_name, self.run_name = Path(output_dir), experiment_name, run_name
        self.cases, self.synthetic = cases, is_synthetic(Path(dataset_dir))
        self.model_synthetic: bool | None = None
        self.metadata = json.loads(Path(metadata).read_text(encoding="utf-8"))
        self.results: dict[str, float] = {}
        self.part_of = None if part_of is None else Path(part_of)
        self.masks = masks
        self.register_as, self.alias = (None, None) if self.part_of else (register_as, alias)
        self._run: tracking.Run | None = None
        self._resumed: Path | None = None
        self._checkpoint: dict[str, Any] | None = None

    @cached_property
    def data(self) -> dict[str, Any]:
        """Fingerprint of the run's data."""
        return {**resuming.describe_data(self.cases), "layout": self.cases.layout, "synthetic": self.synthetic}

    def prepare(self, resume: Any = None) -> None:
        """Find out whether the run can be recorded and, if asked, resumed; called before cases are cached.

        Args:
            resume: None, or the folder of the run to continue, wherever it has been moved.

        Raises:
            ConfigError: as `reopen`.
            DataError: as `reopen`, and if the run has no checkpoint that can be read.
        """
        if folder := self.reopen(resume):
            self._checkpoint = newest_checkpoint(folder)

    def reopen(self, resume: Any = None) -> Path | None:
        """Find out whether the run can be recorded and, if asked, go on as it was started.

        Args:
            resume: None, or the folder of the run to continue, wherever it has been moved.

        Returns:
            The folder of the run to continue.

        Raises:
            ConfigError: if `resume` is anything else, the recipe would train something else than that run, or MLflow's
                store cannot be reached.
            DataError: if the data differ from the run's.
        """
        if resume is not None:
            folder = resuming.run_folder(resume)
            resuming.check_recipe(folder, recipe.merged_recipe())
            resuming.check_data(folder, self.data)
            self._resumed, self.output_dir = folder, folder.parent
        if self.records:
            tracking.check_store(self.output_dir)
        return self._resumed

    @property
    def records(self) -> bool:
        """Whether this process tracks and writes."""
        return distributed.is_first()

    def take_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint to continue from, once; None for a new run."""
        checkpoint, self._checkpoint = self._checkpoint, None
        return checkpoint

    @property
    def run(self) -> tracking.Run:
        """The open run."""
        if self._run is None:
            raise RuntimeError("The run is not open; use it inside `with experiment.running():`.")
        return self._run

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.folder

    @property
    def notice(self) -> str | None:
        """What must stand on every picture of this run."""
        synthetic = self.synthetic if self.model_synthetic is None else self.model_synthetic
        return SYNTHETIC if synthetic else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Open the run and record what it is made of; close it as FINISHED, FAILED or KILLED."""
        distributed.wait()  # no run is opened before all processes have prepared their cases
        if not self.records:
            with distributed.telling_the_first():
                yield
            return
        with ended_by_signals():
            self._run = self._open()
            try:
                with distributed.hearing_the_others(self._fail):
                    self._join()
                    self._record()
                    yield
            except (KeyboardInterrupt, SystemExit):
                self.run.finish("KILLED")
                raise
            except Exception as error:
                self._fail(failure_line(error), traceback.format_exc())
                raise
            else:
                self.run.finish("FINISHED")

    def _fail(self, line: str, trace: str) -> None:
        """Close the run as FAILED."""
        with suppress(OSError):  # a full disk must not hide what filled it
            (self.folder / "error.txt").write_text(trace, encoding="utf-8")
        self.run.finish("FAILED", error=line, traceback=trace)

    def _open(self) -> tracking.Run:
        if self._resumed:
            return tracking.resume_run(self._resumed)
        return tracking.start_run(
            runs_dir=self.output_dir,
            experiment=self.experiment_name,
            name=self.run_name,
            parent=parent_id(self.part_of) if self.part_of else None,
        )

    def _join(self) -> None:
        """Become a fold of the cross-validation, if there is one; a fold may have been moved, and be resumed alone."""
        if self.part_of and self.part_of.is_dir():
            note_fold(self.part_of, recipe.merged_recipe()["fold"], self.folder)
            end_with_launcher()

    def _record(self) -> None:
        resuming.record(self.folder, recipe.merged_recipe() | {"resume": None}, self.data)
        self.run.log_environment()
        if self._resumed:
            self.run.log_params(recipe.merged_recipe())  # shows what is other now, such as the number of workers
        else:
            self.run.log_recipe(recipe.merged_recipe(), recipe.overrides())
            self.run.log_data(self.data, split=resuming.split(self.cases), volumes=self._volumes())

    def _volumes(self) -> list[dict[str, Any]]:
        """Volumes of the reference regions; of folds, the cross-validation has them."""
        if self.part_of:
            return []
        samples = [*self.cases.training, *self.cases.validation, *self.cases.test]
        return region_volumes(samples, recipe.merged_recipe()["regions"], self.masks)

    @cached_property
    def training_range(self) -> dict[str, Any]:
        """For the metadata of the bundle; see `range_of`. The folds together learn from every labeled case."""
        return range_of(self.cases.training or self.cases.validation, recipe.merged_recipe())

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Keep numbers of an epoch for the next `flush`."""
        self.results |= metrics
        if self.records:
            self.run.log_metrics(metrics, step=step)

    def log_cases(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Write a table with one row a case into the run."""
        self.run.log_table(rows, name)

    def write_bundle(self, weights: Mapping[str, Tensor]) -> None:
        """Write the run's bundle with these weights; the one before stays whole until the new one is.

        What held-out cases have shown by now goes into its metadata.
        """
        if not self.records:
            return
        merged = recipe.merged_recipe()
        merged |= {place: None for place in PLACES if place in merged}
        held_out = {
            name: round(value, 4)
            for name, value in self.results.items()
            if name.startswith("held_out_") and math.isfinite(value)
        }
        metadata = task_metadata(
            self.metadata, merged, name=self.folder.name, synthetic=self.synthetic, eval_metrics=held_out
        )
        metadata |= self.training_range
        write_bundle(self.folder / "bundle", recipe=merged, metadata=metadata, state_dict=weights)

    def best_weights(self) -> dict[str, Tensor]:
        """Weights of the bundle as it stands now."""
        weights: dict[str, Tensor] | None = None
        if self.records:
            weights = torch.load(self.folder / "bundle" / "models" / "model.pt", weights_only=True, map_location="cpu")
        return distributed.from_first(weights)

    def record_bundle(self) -> None:
        """Record the bundle as it stands now as MLflow's model of the run."""
        if self.records:
            self.run.log_model(self.folder / "bundle", register_as=self.register_as, alias=self.alias)

    def summarize(self) -> None:
        """Say where everything is."""
        if not self.records:
            return
        for name in ("bundle", "pictures"):
            if (self.folder / name).is_dir():
                logger.info("%-9s %s", f"{name}:", self.folder / name)
        elsewhere = "MLFLOW_TRACKING_URI" in os.environ  # may hold a password, so it is not repeated
        store = "the store of MLFLOW_TRACKING_URI" if elsewhere else self.output_dir / "mlflow.db"
        logger.info("MLflow:   %s (open it with: medseg ui --runs %s)", store, self.output_dir)
        if self.notice:
            logger.info("This model is %s.", self.notice)


def is_synthetic(dataset_dir: Path) -> bool:
    """Whether a data set says of itself that it is made up."""
    description = dataset_dir / "dataset.json"
    return description.is_file() and bool(json.loads(description.read_text(encoding="utf-8")).get("synthetic", False))
