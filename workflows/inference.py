"""Run id `inference`: the route of `medseg predict`, started from a recipe."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset

from medseg.bundle import open_bundle
from medseg.data import Sample, find_scans
from medseg.errors import ConfigError
from medseg.inference import predict_folder

logger = logging.getLogger(__name__)


def scans_to_segment(scans_dir: str | None, channels: Sequence[str]) -> list[Sample]:
    """The scans of a folder, or one file.

    Raises:
        ConfigError: without a folder.
    """
    if scans_dir is None:
        raise ConfigError("Inference needs scans: add `--scans_dir FOLDER`.")
    return find_scans(scans_dir, channels=channels)


class FolderInference:
    """Segments a folder of scans with a trained bundle; MONAI calls it the evaluator.

    Args:
        dataset: what to segment; its `data` lists the samples.
        output_dir: where masks and report go.
        model: bundle folder, run folder, zip or MLflow run id.
        runs_dir: where a run id is looked for.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`.
    """

    def __init__(
        self, *, dataset: Dataset, output_dir: str, model: str | None, runs_dir: str, device: Any = "cpu"
    ) -> None:
        self.samples, self.output_dir, self.model = dataset.data, Path(output_dir), model
        self.runs_dir, self.device = Path(runs_dir), str(device)

    def run(self) -> list[dict[str, Any]]:
        """Segment every scan; one report row a case.

        Raises:
            ConfigError: without a model.
        """
        if self.model is None:
            raise ConfigError("Inference needs a trained model: add `--model runs/NAME` (a run folder or bundle).")
        bundle = open_bundle(self.model, runs_dir=self.runs_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        rows = predict_folder(self.samples, self.output_dir, bundle, device=self.device)
        failed = [row for row in rows if row["status"] != "done"]
        for row in failed:
            logger.error("%s failed: %s", row["case_id"], row["message"])
        logger.info(
            "%d of %d cases done; report: %s", len(rows) - len(failed), len(rows), self.output_dir / "report.csv"
        )
        return rows
