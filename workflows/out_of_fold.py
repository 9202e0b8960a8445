"""Every case segmented by the fold that has not seen it, and models judged by masks on disk."""

import csv
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from medseg.bundle import Bundle, open_bundle
from medseg.data import Sample
from medseg.inference import predict_folder
from medseg.inference.batch import MASK_ENDING, Options
from medseg.inference.settings import RunSettings
from medseg.reading import MaskCode, read_label
from medseg.report.measurements import write_csv
from medseg.writing import aside
from workflows.evaluation import KEY_METRIC, CaseTable
from workflows.fold_runs import fold_folder

FOLDER = "out_of_fold"
TABLES = ("lesions.csv", "report.csv")
SETTINGS = "settings.json"  # what a fold's masks were made with; written last, it says that they are done


class Judged(NamedTuple):
    """What masks are worth.

    Attributes:
        rows: one a case, as of `CaseTable.rows`, with `status` and `message`.
        dice: `<region>_dice` and `mean_dice`, means over cases; NaN for a region that no case has.
        seconds: a case, mean.
    """

    rows: list[dict[str, Any]]
    dice: dict[str, float]
    seconds: float

    @property
    def failed(self) -> list[str]:
        """Ids of the cases without a mask."""
        return [row["case_id"] for row in self.rows if row["status"] != "done"]


class Judge:
    """Judges masks as trainings do.

    Args:
        ignore_label: the recipe's.
        masks: the recipe's, what the values of mask files mean, where labels are such.
    """

    def __init__(self, *, ignore_label: int | None = None, masks: MaskCode | None = None) -> None:
        self.ignore_label, self.masks = ignore_label, masks

    def __call__(
        self, samples: Sequence[Sample], folder: Path, report: Sequence[Mapping[str, Any]], bundle: Bundle
    ) -> Judged:
        """Judge the masks of labeled cases.

        Args:
            samples: the cases.
            folder: of the masks.
            report: rows of the prediction, as of `predict_folder`.
            bundle: what has predicted.
        """
        table = CaseTable(bundle.regions, ignore_label=self.ignore_label)
        states = {row["case_id"]: row for row in report}
        for sample in samples:
            if states[sample["case_id"]]["status"] == "done":
                pred = read_label(folder / f"{sample['case_id']}{MASK_ENDING[bundle.unit]}", MaskCode(bundle.labels))
                label = read_label(sample["label"], self.masks)
                grid = SimpleNamespace(scan_affine=label.affine, unit=label.unit)
                voxels = [torch.from_numpy(scan.voxels)[None, None] for scan in (pred, label)]
                labeled = sample.get("labeled", list(bundle.regions))
                table.update((sample["case_id"], voxels[0], voxels[1], grid, labeled))
        overlaps = {row["case_id"]: row for row in table.rows}
        rows = [
            {"case_id": id, "status": row["status"], "message": row["message"]} | overlaps.get(id, {})
            for id, row in states.items()
        ]
        dice = {name: value for name, value in table.means().items() if name.endswith("_dice")}
        seconds = [float(row["seconds"]) for row in report if row["status"] == "done"]
        return Judged(rows, dice | {KEY_METRIC: table.compute()}, statistics.fmean(seconds) if seconds else 0.0)


def predict_fold(fold: int, run: Path, samples: Sequence[Sample], *, parent: Path, judge: Judge, device: str) -> Judged:
    """Segment the validation cases of a fold by its best model, into `out_of_fold/` of the cross-validation.

    Args:
        fold: which one.
        run: its run folder.
        samples: its validation cases.
        parent: run folder of the cross-validation; a fold that this model has segmented before is judged only.
        judge: of the masks.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`.
    """
    bundle, masks, kept = open_bundle(run), parent / FOLDER, fold_folder(parent, fold)
    report, settings = read_table(kept / "report.csv"), RunSettings.of(bundle).as_json()
    done = {row["case_id"] for row in report if row["status"] == "done"}
    if done != {sample["case_id"] for sample in samples} or _made_with(kept) != settings:
        fresh, ending = kept / "predictions", MASK_ENDING[bundle.unit]
        fresh.mkdir(parents=True, exist_ok=True)
        report = predict_folder(samples, fresh, bundle, device=device, options=Options(redo=True))
        for sample in samples:  # of another model, if a case fails now
            (masks / f"{sample['case_id']}{ending}").unlink(missing_ok=True)
        for path in sorted(fresh.rglob(f"*{ending}")):
            target = masks / path.relative_to(fresh)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for name in TABLES:
            if (fresh / name).is_file():
                (fresh / name).replace(kept / name)
        with aside(kept / SETTINGS) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(fresh)
    return judge(samples, masks, report, bundle)


def write_tables(parent: Path, judged: Mapping[int, Judged]) -> list[dict[str, Any]]:
    """Write `out_of_fold/cases.csv`, `report.csv` and `lesions.csv` of all folds; the rows of the first one."""
    cases = [{"case_id": row["case_id"], "fold": fold} | row for fold in sorted(judged) for row in judged[fold].rows]
    tables = {"cases.csv": sorted(cases, key=_case_id)}
    for name in TABLES:
        tables[name] = [
            {"case_id": row["case_id"], "fold": fold} | row
            for fold in sorted(judged)
            for row in read_table(fold_folder(parent, fold) / name)
        ]
    for name, rows in tables.items():
        if rows:
            write_csv(parent / FOLDER / name, rows, list(dict.fromkeys(column for row in rows for column in row)))
    return tables["cases.csv"]


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _made_with(folder: Path) -> Any:
    """Settings of the model that has segmented a fold; None where they are not known."""
    try:
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _case_id(row: Mapping[str, Any]) -> str:
    return str(row["case_id"])
