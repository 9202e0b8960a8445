"""Run id `inference`: the route of `medseg predict`, started from a recipe."""

import logging
from pathlib import Path
from typing import Any

from monai.data import Dataset

from medseg.bundle import open_bundle
from medseg.errors import ConfigError, DataError
from medseg.inference import predict_folder
from medseg.inference.cases import Case, cases_in, check_out
from medseg.inference.identity import open_key, write_key_table

logger = logging.getLogger(__name__)


def scans_to_segment(scans_dir: str | None, model: str | None, runs_dir: str, masks_dir: str) -> list[Case]:
    """The cases that `medseg predict` finds: in a folder, one file, a zip or a `cases.csv`, with the model's channels.

    Raises:
        ConfigError: without scans or a model, or if the masks would lie among the scans.
        DataError: if there is no case.
    """
    if scans_dir is None:
        raise ConfigError("Inference needs scans: add `--scans_dir FOLDER`.")
    if model is None:
        raise ConfigError("Inference needs a trained model: add `--model runs/NAME` (a run folder or bundle).")
    bundle, scans, out = open_bundle(model, runs_dir=runs_dir), Path(scans_dir), Path(masks_dir)
    check_out(scans, out)

    def listed(key: bytes | None) -> list[Case]:
        return cases_in(scans, channels=bundle.channels, unit=bundle.unit, key=key, modality=bundle.modality)

    cases = listed(None)
    return listed(open_key(out)) if any(case.keyed for case in cases) else cases  # pseudonyms are of that folder


class FolderInference:
    """Segments a folder of scans with a trained bundle; MONAI calls it the evaluator.

    Args:
        dataset: what to segment; its `data` lists the cases.
        output_dir: where masks and report go.
        model: bundle folder, run folder, zip or MLflow run id.
        runs_dir: where a run id is looked for.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`.
    """

    def __init__(self, *, dataset: Dataset, output_dir: str, model: str, runs_dir: str, device: Any = "cpu") -> None:
        self.cases, self.output_dir, self.model = dataset.data, Path(output_dir), model
        self.runs_dir, self.device = Path(runs_dir), str(device)

    def run(self) -> list[dict[str, Any]]:
        """Segment every scan; one report row a case.

        Raises:
            DataError: if cases failed or were put off; the report and the other masks are written.
        """
        bundle = open_bundle(self.model, runs_dir=self.runs_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_key_table(self.output_dir, self.cases)
        rows = predict_folder(self.cases, self.output_dir, bundle, device=self.device)
        failed = [row for row in rows if row["status"] in ("failed", "pending")]
        for row in failed:
            logger.error("%s %s: %s", row["case_id"], row["status"], row["message"])
        report = self.output_dir / "report.csv"
        logger.info("%d of %d cases done; report: %s", len(rows) - len(failed), len(rows), report)
        logger.info("This model is %s.", bundle.notice)
        if failed:
            raise DataError(f"{len(failed)} of {len(rows)} cases failed; {report.name} says why, the others are done.")
        return rows
