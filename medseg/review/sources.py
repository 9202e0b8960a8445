"""What is compared: a recorded run, or the folder of an evaluation, brought to one form."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg import tracking
from medseg.errors import ConfigError, DataError

Row = dict[str, float | None]
SPLITS = ("held_out", "out_of_fold", "validation")  # of a run's tables, the most telling first
EVALUATION = "cases.jsonl"
RUN = "run.json"
ENSEMBLE = "ensemble"
SIZES = ("ml", "px", "mm2")
CODE = ("medseg", "python", "monai", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "pytorch-ignite", "device")


@dataclass(frozen=True)
class Entry:
    """One of the things that are compared.

    Attributes:
        name: of its model or run; never a path.
        split: which cases it was judged on, as its table is called.
        rows: case id -> metric -> value, None where it is not defined.
        failed: cases that were to be judged and gave no mask; they count, with the values of an empty mask.
        unjudged: cases that could not be judged at all.
        patients: case id -> whose it is, where known.
        found: case id -> reference lesion -> whether it was found.
        recipe: flat settings.
        overrides: flat settings that were changed at the launch.
        data: what is known of the data it learned from.
        code: commit, changes, versions.
        facts: model, version, precision, split and the like.
        cost: milliseconds, memory and parameters, where known.
    """

    name: str
    split: str
    rows: Mapping[str, Row]
    failed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Mapping[int, bool]] = field(default_factory=dict)
    recipe: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)


def read_entries(places: Sequence[str], *, runs_dir: Path, split: str | None = None) -> list[Entry]:
    """What is to be compared.

    Args:
        places: MLflow run ids (8 characters will do) or names of runs, run folders, or folders of an evaluation.
        runs_dir: the project's folder of runs, for ids and names.
        split: which cases of runs: "held_out", "out_of_fold", "validation"; the first that all of them have if None.

    Raises:
        ConfigError: if something is none of these, or has no table of cases.
        DataError: if a table is damaged.
    """
    evaluations = {place for place in places if (Path(place) / EVALUATION).is_file()}
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


def read_evaluation(folder: Path) -> Entry:
    """An evaluation, from `cases.jsonl` and `summary.json`.

    Raises:
        DataError: if it is damaged.
    """
    try:
        lines = (folder / EVALUATION).read_text(encoding="utf-8").splitlines()
        cases = [json.loads(line) for line in lines if line.strip()]
        about = _about(folder / "summary.json")
        judged = [case for case in cases if case.get("metrics")]
        rows = {case["case_id"]: _metrics_row(case["metrics"]) for case in judged}
        found = {case["case_id"]: _found(case["metrics"].get("lesion_rows") or []) for case in judged}
        patients = {case["case_id"]: str(case["patient"]) for case in judged if case.get("patient")}
        failed = tuple(case["case_id"] for case in cases if case["status"] == "failed")
        unjudged = tuple(case["case_id"] for case in cases if not case.get("metrics"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder.name}: no whole evaluation ({type(error).__name__} in its tables); run medseg evaluate again"
        ) from error
    versions = {key: about.get(key) for key in CODE} | dict(about.get("versions") or {})
    commit = {"git commit": about.get("git_commit"), "uncommitted changes": about.get("git_dirty")}
    fingerprint = about.get("data_fingerprint") or about.get("data") or {}
    data = fingerprint if isinstance(fingerprint, Mapping) else {"sha256": fingerprint}
    facts = ("model", "version", "precision", "source", "split", "held_out", "recipe_digest")
    recipe = about.get("recipe")
    return Entry(
        name=str(about.get("title") or about.get("model") or "evaluation"),
        split=str(about.get("split") or "evaluation"),
        rows=rows,
        failed=failed,
        unjudged=unjudged,
        patients=patients,
        found=found,
        recipe=tracking.flat_settings(recipe) if isinstance(recipe, Mapping) else {},
        overrides=_texts(about.get("overrides") or {}),
        data=_texts(data),
        code=_texts(commit | versions),
        facts=_texts({key: about.get(key) for key in facts}),
        cost=_evaluation_cost(about),
    )


def _run(place: str, runs_dir: Path) -> tracking.Recorded:
    folder = Path(place)
    if (folder / RUN).is_file():
        return tracking.recorded_folder(folder.resolve())
    if folder.is_dir():
        raise ConfigError(f"{folder.name} is no run ({RUN}) and no evaluation ({EVALUATION}): give one of these")
    return tracking.find_recorded(place, runs_dir)


def _tables(run: tracking.Recorded, runs_dir: Path, split: str | None) -> dict[str, str]:
    """Split -> text of its table of cases."""
    home = runs_dir.resolve() if run.folder is None else run.folder.parent
    asked = (split,) if split else SPLITS
    texts = {name: tracking.artifact(run, f"{name}_cases.csv", runs_dir=home) for name in asked}
    tables = {name: text for name, text in texts.items() if text is not None}
    if not tables:
        names = ", ".join(f"{name}_cases.csv" for name in asked)
        raise ConfigError(f"run {run.name} has no table of cases ({names}): give one that came to its evaluation")
    return tables


def _of_run(run: tracking.Recorded, split: str, table: str, runs_dir: Path) -> Entry:
    home = runs_dir.resolve() if run.folder is None else run.folder.parent
    read = {
        name: json.loads(tracking.artifact(run, f"{name}.json", runs_dir=home) or "{}")
        for name in ("recipe", "overrides", "data", "environment")
    }
    commit = {
        "git commit": run.tags.get("mlflow.source.git.commit"),
        "uncommitted changes": run.tags.get("mlflow.source.git.dirty"),
    }
    return Entry(
        name=run.name,
        split=split,
        rows=_csv_rows(table, run.name),
        recipe=tracking.flat_settings(read["recipe"]),
        overrides=tracking.flat_settings(read["overrides"]),
        data=_texts(read["data"]),
        code=_texts(commit | {key: read["environment"].get(key) for key in CODE}),
        facts=_texts({"experiment": run.experiment, "status": run.status.lower(), "split": split}),
        cost=_run_cost(run),
    )


def _csv_rows(text: str, name: str) -> dict[str, Row]:
    """Rows of a training's table; of a reference without the region Dice and IoU are not defined, as in evaluations."""
    rows: dict[str, Row] = {}
    for cells in csv.DictReader(io.StringIO(text)):
        if cells.pop("model", ENSEMBLE) != ENSEMBLE:  # a cross-validation's table has its folds too
            continue
        if not cells.get("case_id"):
            raise DataError(f"run {name}: its table of cases has no case_id; run its evaluation again")
        row = {key: _number(value) for key, value in cells.items() if key != "case_id"}
        for key in [key for key in row if key.endswith(("_dice", "_iou"))]:
            region = key.rpartition("_")[0]
            if any(row.get(f"{region}_reference_{size}") == 0 for size in SIZES):
                row[key] = None
        rows[cells["case_id"]] = row
    return rows


def _metrics_row(metrics: Mapping[str, Any]) -> Row:
    """The numbers of a case, by the names of docs/metrics.md."""
    named = {f"{region}_{key}": value for region, scores in metrics["regions"].items() for key, value in scores.items()}
    flat = {**named, **(metrics.get("lesions") or {}), **(metrics.get("overall") or {})}
    return {key: _number(value) for key, value in flat.items() if not isinstance(value, str)}


def _found(lesion_rows: Sequence[Mapping[str, Any]]) -> dict[int, bool]:
    return {int(row["lesion"]): row["status"] == "matched" for row in lesion_rows if row["of"] == "reference"}


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return dict(content.get("about") or {})


def _evaluation_cost(about: Mapping[str, Any]) -> dict[str, float]:
    seconds = _number(about.get("seconds_per_case"))
    cost = {
        "ms_per_case": None if seconds is None else 1000 * seconds,
        "memory_mb": _number(about.get("peak_memory_mb")),
        "parameters": _number(about.get("parameters")),
    }
    return {key: value for key, value in cost.items() if value is not None}


def _run_cost(run: tracking.Recorded) -> dict[str, float]:
    """What a training says: the weights that its bundle has, and the seconds a case took where it was timed."""
    cost: dict[str, float] = {}
    weights = None if run.folder is None else run.folder / "bundle"
    if weights is not None and weights.is_dir():
        from medseg.bundle import open_bundle

        with suppress(ConfigError):  # a training that did not come to its end has no whole one
            bundle = open_bundle(weights)
            folds = bundle.folds or (None,)
            cost["parameters"] = float(sum(p.numel() for fold in folds for p in bundle.network(fold).parameters()))
    for name in ("ensemble_seconds_per_case", "seconds_per_case"):
        if name in run.metrics:
            cost["ms_per_case"] = 1000 * run.metrics[name]
    return cost


def _number(value: Any) -> float | None:
    if value is None or value == "" or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _texts(content: Mapping[str, Any]) -> dict[str, str]:
    """What is known, as text."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in content.items()
        if value not in (None, "")
    }
