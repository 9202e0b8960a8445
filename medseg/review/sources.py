"""What is compared: recorded runs and folders of evaluations, by run id, name or folder."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg import tracking
from medseg.errors import ConfigError, DataError
from medseg.review.entry import SIZES, VERSIONS, Entry, Row, number, parameters_of, texts
from medseg.review.evaluation_folder import CASES, SUMMARY, evaluation, read_evaluation

EVALUATION = "evaluation"  # folder of a run, and the most telling of its tables
SPLITS = (EVALUATION, "held_out", "out_of_fold", "best_validation", "validation")
RUN = "run.json"
ENSEMBLE = "ensemble"
SIZES_IN_MB = {"process_memory_megabytes": "run_memory_mb", "gpu_0_memory_usage_megabytes": "run_gpu_memory_mb"}


def read_entries(places: Sequence[str], *, runs_dir: Path, split: str | None = None) -> list[Entry]:
    """What is to be compared.

    Args:
        places: MLflow run ids (8 characters will do) or names of runs, run folders, or folders of an evaluation.
        runs_dir: the project's folder of runs, for ids and names.
        split: which cases of runs: "evaluation" (its card), "held_out", "out_of_fold", "validation"; the first that
            all of them have if None.

    Raises:
        ConfigError: if something is none of these, or has no table of cases.
        DataError: if a table is damaged.
    """
    evaluations = {place for place in places if (Path(place) / CASES).is_file()}
    runs = {place: _run(place, runs_dir) for place in places if place not in evaluations}
    tables = {place: _tables(run, runs_dir, split) for place, run in runs.items()}
    common = [name for name in SPLITS if all(name in found for found in tables.values())]
    entries = []
    for place in places:
        if place in evaluations:
            entries.append(read_evaluation(Path(place)))
            continue
        name = split or (common or list(tables[place]))[0]
        entries.append(_of_run(runs[place], name, tables[place][name], runs_dir))
    return entries


def _run(place: str, runs_dir: Path) -> tracking.Recorded:
    folder = Path(place)
    if (folder / RUN).is_file():
        return tracking.recorded_folder(folder.resolve())
    if folder.is_dir():
        raise ConfigError(f"{folder.name} is no run ({RUN}) and no evaluation ({CASES}): give one of these")
    return tracking.find_recorded(place, runs_dir)


def _tables(run: tracking.Recorded, runs_dir: Path, split: str | None) -> dict[str, str]:
    """Split -> text of its table of cases."""
    asked = {name: _file(name) for name in ((split,) if split else SPLITS)}
    texts_of = {name: tracking.artifact(run, file, runs_dir=_home(run, runs_dir)) for name, file in asked.items()}
    tables = {name: text for name, text in texts_of.items() if text is not None}
    if not tables:
        raise ConfigError(
            f"run {run.name} has no table of cases ({', '.join(asked.values())}): give one that came to its evaluation"
        )
    return tables


def _file(split: str) -> str:
    return f"{EVALUATION}/{CASES}" if split == EVALUATION else f"{split}_cases.csv"


def _home(run: tracking.Recorded, runs_dir: Path) -> Path:
    return runs_dir.resolve() if run.folder is None else run.folder.parent


def _of_run(run: tracking.Recorded, split: str, table: str, runs_dir: Path) -> Entry:
    home = _home(run, runs_dir)
    read: dict[str, dict[str, Any]] = {
        name: json.loads(tracking.artifact(run, f"{name}.json", runs_dir=home) or "{}")
        for name in ("recipe", "overrides", "data", "environment")
    }
    commit = {
        "git commit": run.tags.get("mlflow.source.git.commit"),
        "uncommitted changes": run.tags.get("mlflow.source.git.dirty"),
    }
    facts = texts({"experiment": run.experiment, "status": run.status.lower(), "split": split})
    if split == EVALUATION:
        summary = tracking.artifact(run, f"{EVALUATION}/{SUMMARY}", runs_dir=home) or "{}"
        entry = evaluation(table, summary, run.name)
    else:
        entry = Entry(run.name, split, _csv_rows(table, run.name))
    return replace(
        entry,
        name=run.name,
        recipe=tracking.flat_settings(read["recipe"]),
        overrides=tracking.flat_settings(read["overrides"]),
        data=texts(read["data"]),
        code=texts(commit | {key: read["environment"].get(key) for key in VERSIONS}),
        facts={**facts, **entry.facts},
        cost={**_cost(run, read["recipe"]), **entry.cost},
    )


def _cost(run: tracking.Recorded, recipe: dict[str, Any]) -> dict[str, float]:
    """What a run says: its network's parameters, its largest memory, and the time of a case where it was taken."""
    cost = {name: run.peaks[f"system/{key}"] for key, name in SIZES_IN_MB.items() if f"system/{key}" in run.peaks}
    parameters = parameters_of(recipe)
    if parameters is not None:
        cost["parameters"] = parameters
    for name in ("ensemble_seconds_per_case", "seconds_per_case"):
        if name in run.metrics:
            cost["ms_per_case"] = 1000 * run.metrics[name]
    return cost


def _csv_rows(text: str, name: str) -> dict[str, Row]:
    """Rows of a training's table; of a reference without the region Dice and IoU are not defined, as in evaluations."""
    rows: dict[str, Row] = {}
    for cells in csv.DictReader(io.StringIO(text)):
        if cells.pop("model", ENSEMBLE) != ENSEMBLE:  # a cross-validation's table has its folds too
            continue
        if not cells.get("case_id"):
            raise DataError(f"run {name}: its table of cases has no case_id; run its evaluation again")
        row = {key: number(value) for key, value in cells.items() if key != "case_id"}
        for key in [key for key in row if key.endswith(("_dice", "_iou"))]:
            region = key.rpartition("_")[0]
            if any(row.get(f"{region}_reference_{size}") == 0 for size in SIZES):
                row[key] = None
        rows[cells["case_id"]] = row
    return rows
